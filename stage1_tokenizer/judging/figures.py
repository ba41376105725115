"""What figures there are of a tokenizer's reconstructions: their names in files, and for people.

Those that begin with `noised_` are of images decoded once more, from tokens of which some are replaced.
"""

TITLES = {
    "psnr": "PSNR (dB)",
    "l2": "mean squared error (pixels in [-1, 1])",
    "ssim": "SSIM",
    "lpips_alex": "LPIPS (AlexNet)",
    "stlpips_alex": "ST-LPIPS (AlexNet)",
    "usage": "codes in use (fraction)",
    "perplexity": "perplexity of the codes",
    "rfid": "rFID",
    "rkid": "rKID",
    "rkid_std": "rKID, deviation between subsets",
    "rfd_vgg16": "Fréchet distance in ST-LPIPS' VGG16",
    "rkd_vgg16": "kernel distance in ST-LPIPS' VGG16",
    "rkd_vgg16_std": "kernel distance in ST-LPIPS' VGG16, deviation between subsets",
}
# In each network's features: names of the Fréchet distance, of the kernel distance and of its deviation.
SET_FIGURES = {"inception": ("rfid", "rkid", "rkid_std"), "vgg16": ("rfd_vgg16", "rkd_vgg16", "rkd_vgg16_std")}

NOISED = "noised_"
OF_NOISED = ("psnr", "lpips_alex", "stlpips_alex", *(name for names in SET_FIGURES.values() for name in names))
TITLES |= {NOISED + name: f"a tenth of the tokens replaced: {TITLES[name]}" for name in OF_NOISED}
