"""The `model_type`s of all MoE families that the tests of families build, in transformers' order.

A list, since finding them means to import and build every model of transformers; a test of
`tests/families` walks through them and says what this list lacks after an update of transformers.
"""

# fmt: off
FAMILIES = (
    "afmoe", "aria", "aria_text", "axk1", "axk2", "bailing_hybrid", "beam", "cohere2_moe",
    "dbrx", "deepseek_ocr2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4",
    "diffusion_gemma", "dots1", "dots3_note", "dots3_note_text", "ernie4_5_moe",
    "ernie4_5_vl_moe", "exaone_moe", "flex_olmo", "flint", "gemma4", "gemma4_text", "glm4_moe",
    "glm4_moe_lite", "glm4v_moe", "glm4v_moe_text", "glm5_next", "glm5_next_text",
    "glm_moe_dsa", "gpt_oss", "granitemoe", "granitemoe_swa", "granitemoehybrid",
    "granitemoeshared", "hunyuan_v1_moe", "hy_v3", "hy_v4", "inkling2", "inkling2_text",
    "inkling_mm_model", "inkling_text", "jamba", "jetmoe", "kimi_k25", "kimi_linear",
    "kolibri1", "laguna", "lfm2_moe", "llama4", "llama4_text", "longcat_flash", "mellum",
    "mimo_v2_flash", "minimax", "minimax_m2", "minimax_m3_vl", "minimax_m3_vl_text", "mistral4",
    "mistral_large4", "mistral_large4_text", "mixtral", "muse_spark", "muse_spark_text",
    "nemo_speechlm", "nemotron_h", "nemotron_h_omni", "nllb-moe", "olmoe",
    "openai_privacy_filter", "phimoe", "qwen2_moe", "qwen3_5_moe", "qwen3_5_moe_text",
    "qwen3_moe", "qwen3_next", "qwen3_omni_moe_thinker", "qwen3_vl_moe", "qwen3_vl_moe_text",
    "qwen4_exp", "qwen4_exp_text", "solar_open", "step3p7", "switch_transformers",
    "unlimited_ocr", "zaya", "llama_upcycled", "mistral_upcycled", "qwen2_upcycled",
    "qwen3_upcycled", "phi_upcycled", "phi3_upcycled", "gpt2_upcycled", "gpt_neox_upcycled",
    "stablelm_upcycled",
)
# fmt: on

TWO = """
    aria aria_text cohere2_moe dbrx deepseek_v2 dots1 flex_olmo gemma4 gemma4_text gpt_oss
    granitemoe granitemoe_swa granitemoehybrid granitemoeshared hunyuan_v1_moe inkling_mm_model
    inkling_text jetmoe kolibri1 longcat_flash mellum minimax minimax_m2 minimax_m3_vl
    minimax_m3_vl_text mistral4 mixtral muse_spark muse_spark_text olmoe openai_privacy_filter
    phimoe qwen2_moe qwen3_moe qwen3_omni_moe_thinker qwen3_vl_moe qwen3_vl_moe_text solar_open
"""
THREE = """
    afmoe axk1 axk2 deepseek_ocr2 ernie4_5_moe ernie4_5_vl_moe exaone_moe glm4_moe glm4_moe_lite
    glm4v_moe glm4v_moe_text hy_v3 inkling2 inkling2_text kimi_linear laguna mimo_v2_flash
    unlimited_ocr zaya
"""
FEW_LAYERS = dict.fromkeys(TWO.split(), 2) | dict.fromkeys(THREE.split(), 3)
"""With so many layers they have two with experts, and each kind of layer that four would have."""
