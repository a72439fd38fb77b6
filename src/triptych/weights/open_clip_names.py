"""open_clip's names of published checkpoints of our families, and where they are on the hub.

Read off the list of open_clip 3.3.0. What differs between them (QuickGELU, resizing, means) stands
in the `open_clip_config.json` of each repository and is taken from there.
"""

REPOSITORIES: dict[str, dict[str, str]] = {
    "RN101": {
        "openai": "timm/resnet101_clip.openai",
        "yfcc15m": "timm/resnet101_clip.yfcc15m",
    },
    "RN101-quickgelu": {
        "openai": "timm/resnet101_clip.openai",
        "yfcc15m": "timm/resnet101_clip.yfcc15m",
    },
    "RN50": {
        "openai": "timm/resnet50_clip.openai",
        "yfcc15m": "timm/resnet50_clip.yfcc15m",
        "cc12m": "timm/resnet50_clip.cc12m",
    },
    "RN50-quickgelu": {
        "openai": "timm/resnet50_clip.openai",
        "yfcc15m": "timm/resnet50_clip.yfcc15m",
        "cc12m": "timm/resnet50_clip.cc12m",
    },
    "RN50x16": {
        "openai": "timm/resnet50x16_clip.openai",
    },
    "RN50x16-quickgelu": {
        "openai": "timm/resnet50x16_clip.openai",
    },
    "RN50x4": {
        "openai": "timm/resnet50x4_clip.openai",
    },
    "RN50x4-quickgelu": {
        "openai": "timm/resnet50x4_clip.openai",
    },
    "RN50x64": {
        "openai": "timm/resnet50x64_clip.openai",
    },
    "RN50x64-quickgelu": {
        "openai": "timm/resnet50x64_clip.openai",
    },
    "ViT-B-16": {
        "openai": "timm/vit_base_patch16_clip_224.openai",
        "laion400m_e31": "timm/vit_base_patch16_clip_224.laion400m_e31",
        "laion400m_e32": "timm/vit_base_patch16_clip_224.laion400m_e32",
        "laion2b_s34b_b88k": "laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
        "datacomp_xl_s13b_b90k": "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K",
        "datacomp_l_s1b_b8k": "laion/CLIP-ViT-B-16-DataComp.L-s1B-b8K",
        "commonpool_l_clip_s1b_b8k": "laion/CLIP-ViT-B-16-CommonPool.L.clip-s1B-b8K",
        "commonpool_l_laion_s1b_b8k": "laion/CLIP-ViT-B-16-CommonPool.L.laion-s1B-b8K",
        "commonpool_l_image_s1b_b8k": "laion/CLIP-ViT-B-16-CommonPool.L.image-s1B-b8K",
        "commonpool_l_text_s1b_b8k": "laion/CLIP-ViT-B-16-CommonPool.L.text-s1B-b8K",
        "commonpool_l_basic_s1b_b8k": "laion/CLIP-ViT-B-16-CommonPool.L.basic-s1B-b8K",
        "commonpool_l_s1b_b8k": "laion/CLIP-ViT-B-16-CommonPool.L-s1B-b8K",
        "dfn2b": "apple/DFN2B-CLIP-ViT-B-16",
        "metaclip_400m": "timm/vit_base_patch16_clip_224.metaclip_400m",
        "metaclip_fullcc": "timm/vit_base_patch16_clip_224.metaclip_2pt5b",
    },
    "ViT-B-16-SigLIP": {
        "webli": "timm/ViT-B-16-SigLIP",
    },
    "ViT-B-16-SigLIP-256": {
        "webli": "timm/ViT-B-16-SigLIP-256",
    },
    "ViT-B-16-SigLIP-384": {
        "webli": "timm/ViT-B-16-SigLIP-384",
    },
    "ViT-B-16-SigLIP-512": {
        "webli": "timm/ViT-B-16-SigLIP-512",
    },
    "ViT-B-16-SigLIP-i18n-256": {
        "webli": "timm/ViT-B-16-SigLIP-i18n-256",
    },
    "ViT-B-16-SigLIP2": {
        "webli": "timm/ViT-B-16-SigLIP2",
    },
    "ViT-B-16-SigLIP2-256": {
        "webli": "timm/ViT-B-16-SigLIP2-256",
    },
    "ViT-B-16-SigLIP2-384": {
        "webli": "timm/ViT-B-16-SigLIP2-384",
    },
    "ViT-B-16-SigLIP2-512": {
        "webli": "timm/ViT-B-16-SigLIP2-512",
    },
    "ViT-B-16-plus-240": {
        "laion400m_e31": "timm/vit_base_patch16_plus_clip_240.laion400m_e31",
        "laion400m_e32": "timm/vit_base_patch16_plus_clip_240.laion400m_e31",
    },
    "ViT-B-16-quickgelu": {
        "openai": "timm/vit_base_patch16_clip_224.openai",
        "dfn2b": "apple/DFN2B-CLIP-ViT-B-16",
        "metaclip_400m": "timm/vit_base_patch16_clip_224.metaclip_400m",
        "metaclip_fullcc": "timm/vit_base_patch16_clip_224.metaclip_2pt5b",
    },
    "ViT-B-32": {
        "openai": "timm/vit_base_patch32_clip_224.openai",
        "laion400m_e31": "timm/vit_base_patch32_clip_224.laion400m_e31",
        "laion400m_e32": "timm/vit_base_patch32_clip_224.laion400m_e32",
        "laion2b_e16": "timm/vit_base_patch32_clip_224.laion2b_e16",
        "laion2b_s34b_b79k": "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
        "datacomp_xl_s13b_b90k": "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K",
        "datacomp_m_s128m_b4k": "laion/CLIP-ViT-B-32-DataComp.M-s128M-b4K",
        "commonpool_m_clip_s128m_b4k": "laion/CLIP-ViT-B-32-CommonPool.M.clip-s128M-b4K",
        "commonpool_m_laion_s128m_b4k": "laion/CLIP-ViT-B-32-CommonPool.M.laion-s128M-b4K",
        "commonpool_m_image_s128m_b4k": "laion/CLIP-ViT-B-32-CommonPool.M.image-s128M-b4K",
        "commonpool_m_text_s128m_b4k": "laion/CLIP-ViT-B-32-CommonPool.M.text-s128M-b4K",
        "commonpool_m_basic_s128m_b4k": "laion/CLIP-ViT-B-32-CommonPool.M.basic-s128M-b4K",
        "commonpool_m_s128m_b4k": "laion/CLIP-ViT-B-32-CommonPool.M-s128M-b4K",
        "datacomp_s_s13m_b4k": "laion/CLIP-ViT-B-32-DataComp.S-s13M-b4K",
        "commonpool_s_clip_s13m_b4k": "laion/CLIP-ViT-B-32-CommonPool.S.clip-s13M-b4K",
        "commonpool_s_laion_s13m_b4k": "laion/CLIP-ViT-B-32-CommonPool.S.laion-s13M-b4K",
        "commonpool_s_image_s13m_b4k": "laion/CLIP-ViT-B-32-CommonPool.S.image-s13M-b4K",
        "commonpool_s_text_s13m_b4k": "laion/CLIP-ViT-B-32-CommonPool.S.text-s13M-b4K",
        "commonpool_s_basic_s13m_b4k": "laion/CLIP-ViT-B-32-CommonPool.S.basic-s13M-b4K",
        "commonpool_s_s13m_b4k": "laion/CLIP-ViT-B-32-CommonPool.S-s13M-b4K",
        "metaclip_400m": "timm/vit_base_patch32_clip_224.metaclip_400m",
        "metaclip_fullcc": "timm/vit_base_patch32_clip_224.metaclip_2pt5b",
    },
    "ViT-B-32-256": {
        "datacomp_s34b_b86k": "laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K",
    },
    "ViT-B-32-SigLIP2-256": {
        "webli": "timm/ViT-B-32-SigLIP2-256",
    },
    "ViT-B-32-quickgelu": {
        "openai": "timm/vit_base_patch32_clip_224.openai",
        "laion400m_e31": "timm/vit_base_patch32_clip_224.laion400m_e31",
        "laion400m_e32": "timm/vit_base_patch32_clip_224.laion400m_e32",
        "metaclip_400m": "timm/vit_base_patch32_clip_224.metaclip_400m",
        "metaclip_fullcc": "timm/vit_base_patch32_clip_224.metaclip_2pt5b",
    },
    "ViT-H-14": {
        "laion2b_s32b_b79k": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        "metaclip_fullcc": "timm/vit_huge_patch14_clip_224.metaclip_2pt5b",
        "metaclip_altogether": "timm/vit_huge_patch14_clip_224.metaclip_altogether",
        "dfn5b": "apple/DFN5B-CLIP-ViT-H-14",
    },
    "ViT-H-14-378": {
        "dfn5b": "apple/DFN5B-CLIP-ViT-H-14-378",
    },
    "ViT-H-14-378-quickgelu": {
        "dfn5b": "apple/DFN5B-CLIP-ViT-H-14-378",
    },
    "ViT-H-14-CLIPA": {
        "datacomp1b": "UCSC-VLAA/ViT-H-14-CLIPA-datacomp1B",
    },
    "ViT-H-14-CLIPA-336": {
        "laion2b": "UCSC-VLAA/ViT-H-14-CLIPA-336-laion2B",
        "datacomp1b": "UCSC-VLAA/ViT-H-14-CLIPA-336-datacomp1B",
    },
    "ViT-H-14-quickgelu": {
        "metaclip_fullcc": "timm/vit_huge_patch14_clip_224.metaclip_2pt5b",
        "dfn5b": "apple/DFN5B-CLIP-ViT-H-14",
    },
    "ViT-H-14-worldwide": {
        "metaclip2_worldwide": "timm/vit_huge_patch14_clip_224.metaclip2_worldwide",
    },
    "ViT-H-14-worldwide-378": {
        "metaclip2_worldwide": "timm/vit_huge_patch14_clip_378.metaclip2_worldwide",
    },
    "ViT-H-14-worldwide-quickgelu": {
        "metaclip2_worldwide": "timm/vit_huge_patch14_clip_224.metaclip2_worldwide",
    },
    "ViT-L-14": {
        "openai": "timm/vit_large_patch14_clip_224.openai",
        "laion400m_e31": "timm/vit_large_patch14_clip_224.laion400m_e31",
        "laion400m_e32": "timm/vit_large_patch14_clip_224.laion400m_e32",
        "laion2b_s32b_b82k": "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
        "datacomp_xl_s13b_b90k": "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K",
        "commonpool_xl_clip_s13b_b90k": "laion/CLIP-ViT-L-14-CommonPool.XL.clip-s13B-b90K",
        "commonpool_xl_laion_s13b_b90k": "laion/CLIP-ViT-L-14-CommonPool.XL.laion-s13B-b90K",
        "commonpool_xl_s13b_b90k": "laion/CLIP-ViT-L-14-CommonPool.XL-s13B-b90K",
        "metaclip_400m": "timm/vit_large_patch14_clip_224.metaclip_400m",
        "metaclip_fullcc": "timm/vit_large_patch14_clip_224.metaclip_2pt5b",
        "dfn2b": "apple/DFN2B-CLIP-ViT-L-14",
        "dfn2b_s39b": "apple/DFN2B-CLIP-ViT-L-14-39B",
    },
    "ViT-L-14-336": {
        "openai": "timm/vit_large_patch14_clip_336.openai",
    },
    "ViT-L-14-336-quickgelu": {
        "openai": "timm/vit_large_patch14_clip_336.openai",
    },
    "ViT-L-14-CLIPA": {
        "datacomp1b": "UCSC-VLAA/ViT-L-14-CLIPA-datacomp1B",
    },
    "ViT-L-14-CLIPA-336": {
        "datacomp1b": "UCSC-VLAA/ViT-L-14-CLIPA-336-datacomp1B",
    },
    "ViT-L-14-quickgelu": {
        "openai": "timm/vit_large_patch14_clip_224.openai",
        "metaclip_400m": "timm/vit_large_patch14_clip_224.metaclip_400m",
        "metaclip_fullcc": "timm/vit_large_patch14_clip_224.metaclip_2pt5b",
        "dfn2b": "apple/DFN2B-CLIP-ViT-L-14",
    },
    "ViT-L-16-SigLIP-256": {
        "webli": "timm/ViT-L-16-SigLIP-256",
    },
    "ViT-L-16-SigLIP-384": {
        "webli": "timm/ViT-L-16-SigLIP-384",
    },
    "ViT-L-16-SigLIP2-256": {
        "webli": "timm/ViT-L-16-SigLIP2-256",
    },
    "ViT-L-16-SigLIP2-384": {
        "webli": "timm/ViT-L-16-SigLIP2-384",
    },
    "ViT-L-16-SigLIP2-512": {
        "webli": "timm/ViT-L-16-SigLIP2-512",
    },
    "ViT-SO400M-14-SigLIP": {
        "webli": "timm/ViT-SO400M-14-SigLIP",
    },
    "ViT-SO400M-14-SigLIP-378": {
        "webli": "timm/ViT-SO400M-14-SigLIP-384",
    },
    "ViT-SO400M-14-SigLIP-384": {
        "webli": "timm/ViT-SO400M-14-SigLIP-384",
    },
    "ViT-SO400M-14-SigLIP2": {
        "webli": "timm/ViT-SO400M-14-SigLIP2",
    },
    "ViT-SO400M-14-SigLIP2-378": {
        "webli": "timm/ViT-SO400M-14-SigLIP2-378",
    },
    "ViT-SO400M-16-SigLIP-i18n-256": {
        "webli": "timm/ViT-SO400M-16-SigLIP-i18n-256",
    },
    "ViT-SO400M-16-SigLIP2-256": {
        "webli": "timm/ViT-SO400M-16-SigLIP2-256",
    },
    "ViT-SO400M-16-SigLIP2-384": {
        "webli": "timm/ViT-SO400M-16-SigLIP2-384",
    },
    "ViT-SO400M-16-SigLIP2-512": {
        "webli": "timm/ViT-SO400M-16-SigLIP2-512",
    },
    "ViT-bigG-14": {
        "laion2b_s39b_b160k": "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
        "metaclip_fullcc": "timm/vit_gigantic_patch14_clip_224.metaclip_2pt5b",
    },
    "ViT-bigG-14-CLIPA": {
        "datacomp1b": "UCSC-VLAA/ViT-bigG-14-CLIPA-datacomp1B",
    },
    "ViT-bigG-14-CLIPA-336": {
        "datacomp1b": "UCSC-VLAA/ViT-bigG-14-CLIPA-336-datacomp1B",
    },
    "ViT-bigG-14-quickgelu": {
        "metaclip_fullcc": "timm/vit_gigantic_patch14_clip_224.metaclip_2pt5b",
    },
    "ViT-bigG-14-worldwide": {
        "metaclip2_worldwide": "timm/vit_gigantic_patch14_clip_224.metaclip2_worldwide",
    },
    "ViT-bigG-14-worldwide-378": {
        "metaclip2_worldwide": "timm/vit_gigantic_patch14_clip_378.metaclip2_worldwide",
    },
    "ViT-g-14": {
        "laion2b_s12b_b42k": "laion/CLIP-ViT-g-14-laion2B-s12B-b42K",
        "laion2b_s34b_b88k": "laion/CLIP-ViT-g-14-laion2B-s34B-b88K",
    },
    "ViT-gopt-16-SigLIP2-256": {
        "webli": "timm/ViT-gopt-16-SigLIP2-256",
    },
    "ViT-gopt-16-SigLIP2-384": {
        "webli": "timm/ViT-gopt-16-SigLIP2-384",
    },
}


def repository(name: str) -> str:
    """The hub repository of MODEL/TAG, such as ViT-B-32/laion2b_s34b_b79k; empty for other names.

    Raises:
        ValueError: the model is known but the tag is not, or is missing.
    """
    model, _, tag = name.partition("/")
    tags = REPOSITORIES.get(model)
    if tags is None:
        return ""
    if tag not in tags:
        wanted = ", ".join(f"{model}/{known}" for known in tags)
        raise ValueError(f"{name!r} is no published checkpoint of {model}; there are: {wanted}")
    return tags[tag]
