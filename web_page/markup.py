"""How the page looks, and what it does in the browser itself."""

CSS = """
.sheet { display: grid; gap: 6px }
.sheet figure { margin: 0 }
.sheet img, .pixels img { display: block; width: 100%; image-rendering: pixelated }
.sheet img { border: 1px solid var(--border-color-primary) }
.sheet figcaption { font-size: 12px; line-height: 1.3 }
.pixels img { width: 100% !important; height: auto !important; object-fit: contain !important }
#kept { max-width: 300px }
.pixels .image-frame { width: 100% }
.gradio-container .block .html-container { padding: 0 }
.plan h2 { margin: 12px 0 4px; font-size: 18px; font-weight: 600 }
.plan p, .plan dl, .plan table, .plan figure { margin: 0 0 10px }
.plan p, .plan dd, .plan code { overflow-wrap: anywhere }
.plan a { text-decoration: underline }
.plan table { width: auto; border-width: 0; border-collapse: collapse; text-align: left }
.plan th, .plan td { padding: 4px 14px 4px 0; border-width: 0; vertical-align: top }
.plan tr { border: solid var(--border-color-primary); border-width: 0 0 1px }
.plan progress { appearance: none; width: 100%; min-width: 90px; height: 8px; border: 0 }
.plan progress { background: var(--border-color-primary) }
.plan progress::-webkit-progress-bar { background: var(--border-color-primary) }
.plan progress::-webkit-progress-value { background: var(--color-accent) }
.plan progress::-moz-progress-bar { background: var(--color-accent) }
.plan dt { font-weight: 600 }
.plan pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px }
.plan figcaption { font-size: 13px; line-height: 1.3 }
.plan img { max-width: 100%; height: auto }
.plan .panel, .plan .strip img { width: 100%; max-width: 600px; image-rendering: pixelated }
.plan .figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); gap: 6px 14px }
.plan .strip { display: grid; grid-template-columns: repeat(16, 1fr); gap: 4px; max-width: 1060px }
@media (max-width: 500px) {
    .tab-container button { padding: 0 5px }
    .plan .strip { grid-template-columns: repeat(8, 1fr) }
}
"""
# Gradio would not let a rule of `CSS` reach so far out.
NARROW_EDGES = "<style>@media (max-width: 500px) { .gradio-container .main.app { padding: 12px !important } }</style>"
# What a file holds is for the server to say: the page itself knows names only, and would refuse a HEIC or a JPEG that
# is called otherwise.
TAKE_ANY_FILE = """
<script>
const asPictures = files => {
    const taken = new DataTransfer();
    for (const file of files)
        taken.items.add(file.type.startsWith("image/") ? file : new File([file], file.name, {type: "image/unknown"}));
    return taken.files;
};
document.addEventListener("change", event => {
    if (event.target.type === "file") event.target.files = asPictures(event.target.files);
}, true);
document.addEventListener("drop", event => {
    const input = event.target.closest(".block")?.querySelector("input[type=file]");
    if (!input || !event.dataTransfer.files.length) return;
    event.preventDefault();
    event.stopPropagation();
    input.files = event.dataTransfer.files;
    input.dispatchEvent(new Event("change", {bubbles: true}));
}, true);
</script>
"""
