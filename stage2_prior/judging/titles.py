"""Names of all that is measured of drawn images, and what people call it."""

PERCENTILES = {50: "median", 95: "95th percentile", 100: "highest"}
SHARED_TOKENS = {"shared_tokens": "drawn images", "shared_tokens_held_out": "held-out images"}
TITLES = {
    "fid": "FID",
    "kid": "KID",
    "kid_std": "KID, deviation between subsets",
    "mind": "MIND",
    "precision": "precision",
    "recall": "recall",
    "copying": "chance of being nearer to a training image than a held-out image is",
    "inception_score": "Inception score",
    "inception_score_std": "Inception score, deviation between parts",
    "fd_vgg16": "Fréchet distance in ST-LPIPS' VGG16",
    "kd_vgg16": "kernel distance in ST-LPIPS' VGG16",
    "kd_vgg16_std": "kernel distance in ST-LPIPS' VGG16, deviation between subsets",
    "mind_vgg16": "Monge distance (MIND) in ST-LPIPS' VGG16",
    "precision_vgg16": "precision in ST-LPIPS' VGG16",
    "recall_vgg16": "recall in ST-LPIPS' VGG16",
    "copying_vgg16": "chance of being nearer to a training image than a held-out image is, in ST-LPIPS' VGG16",
    "nearest_held_out": "share of drawn images whose nearest real image was held out from training",
    "copying_tokens": "chance of sharing more tokens with a training grid than a held-out image does",
} | {
    f"{name}_{percent}": f"share of tokens in common with the nearest training grid, {of}: {title}"
    for name, of in SHARED_TOKENS.items()
    for percent, title in PERCENTILES.items()
}
COPYING = {"inception": "copying", "vgg16": "copying_vgg16"}
# Names of the fields of `Distances` in each network's features, and then of the Inception score.
MEASURES = {
    "inception": ("fid", "kid", "kid_std", "mind", "precision", "recall", "inception_score", "inception_score_std"),
    "vgg16": ("fd_vgg16", "kd_vgg16", "kd_vgg16_std", "mind_vgg16", "precision_vgg16", "recall_vgg16"),
}
