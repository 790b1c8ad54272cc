"""The dense decoders: one MLP in every layer, softmax attention in every layer."""

from __future__ import annotations

from typing import Any

import transformers as t

from tests.families.zoo import D_MLP, D_MODEL, D_VOCAB, N_CTX, N_HEADS, SWITCH, WINDOW, Family

SMALL: dict[str, Any] = {
    "vocab_size": D_VOCAB,
    "hidden_size": D_MODEL,
    "intermediate_size": D_MLP,
    "num_hidden_layers": 3,
    "num_attention_heads": N_HEADS,
    "max_position_embeddings": N_CTX,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}
GROUPED: dict[str, Any] = {**SMALL, "num_key_value_heads": 2}
WIDE: dict[str, Any] = {**GROUPED, "head_dim": 8}
FOUR: dict[str, Any] = {"num_hidden_layers": 4}
TIED: dict[str, Any] = {"tie_word_embeddings": True}
SHORT: dict[str, Any] = {
    "vocab_size": D_VOCAB,
    "n_embd": D_MODEL,
    "n_inner": D_MLP,
    "n_layer": 3,
    "n_head": N_HEADS,
    "n_positions": N_CTX,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
LATENT: dict[str, Any] = {
    "q_lora_rank": 12,
    "kv_lora_rank": 10,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 7,
}
SLIDING = {"sliding_window": WINDOW}


def rope(**settings: Any) -> dict[str, Any]:
    """Settings of rotary positions."""
    return {"rope_theta": 10000.0, **settings}


def of(architecture: str, *settings: dict[str, Any], **more: Any) -> Any:
    """A function that builds an architecture by its name in transformers."""

    def make() -> Any:
        together: dict[str, Any] = {}
        for some in (*settings, more):
            together |= some
        kind: Any = getattr(t, architecture)
        return kind._from_config(kind.config_class(**together))

    return make


_FALCON: dict[str, Any] = {
    "vocab_size": D_VOCAB,
    "hidden_size": D_MODEL,
    "num_hidden_layers": 3,
    "num_attention_heads": N_HEADS,
    "ffn_hidden_size": D_MLP,
    "max_position_embeddings": N_CTX,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_GPT: dict[str, Any] = {
    "layers": "transformer.h",
    "attention": "attn",
    "output": "attn.c_proj",
    "middle": "ln_2",
    "act": "mlp.act",
    "down": "mlp.c_proj",
    "up": None,
    "norm": "transformer.ln_f",
    "n_kv": 4,
}
_BLOOM: dict[str, Any] = {
    **_GPT,
    "attention": "self_attention",
    "output": "self_attention.dense",
    "middle": "post_attention_layernorm",
    "down": "mlp.dense_4h_to_h",
}
_NEOX: dict[str, Any] = {
    **_GPT,
    "layers": "gpt_neox.layers",
    "attention": "attention",
    "output": "attention.dense",
    "middle": None,
    "down": "mlp.dense_4h_to_h",
    "norm": "gpt_neox.final_layer_norm",
}
_OPT: dict[str, Any] = {
    "output": "self_attn.out_proj",
    "middle": "final_layer_norm",
    "act": "activation_fn",
    "down": "fc2",
    "up": None,
    "n_kv": 4,
}
_FC: dict[str, Any] = {"down": "mlp.fc2", "act": "mlp.activation_fn", "up": None}
_FUSED: dict[str, Any] = {"act": "mlp.activation_fn", "up": "mlp.gate_up_proj", "fused": True}
_PLAIN: dict[str, Any] = {"up": None}
_BEHIND: dict[str, Any] = {  # norms behind attention and MLP, none before
    "middle": "mlp",
    "post_attention": "post_attention_layernorm",
    "post_mlp": "post_feedforward_layernorm",
}
_SANDWICH: dict[str, Any] = {**_BEHIND, "middle": "pre_feedforward_layernorm"}

DENSE: dict[str, Family] = {
    "GPT-2": Family(of("GPT2LMHeadModel", SHORT), "learned positions, fused query, key and value", **_GPT),
    "GPT-NeoX": Family(
        of("GPTNeoXForCausalLM", SMALL),
        "parallel attention and MLP, fused query, key and value",
        **_NEOX,
    ),
    "GPT-NeoX, sequential": Family(
        of("GPTNeoXForCausalLM", SMALL, use_parallel_residual=False),
        "attention before the MLP, fused query, key and value",
        **{**_NEOX, "middle": "post_attention_layernorm"},
    ),
    "GPT-J": Family(
        of("GPTJForCausalLM", SHORT, rotary_dim=4),
        "parallel, rotary on half of a head, a bias on the logits",
        **{**_GPT, "output": "attn.out_proj", "down": "mlp.fc_out", "middle": None},
    ),
    "GPT-Neo": Family(
        of(
            "GPTNeoForCausalLM",
            {key: SMALL[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings")},
            num_layers=4,
            num_heads=4,
            attention_types=[[["global", "local"], 2]],
            window_size=WINDOW,
            bos_token_id=0,
            eos_token_id=1,
        ),
        "every second layer looks at the last 8 positions only; scores are not scaled",
        **{**_GPT, "attention": "attn.attention", "output": "attn.attention.out_proj"},
        n_layers=4,
        window=WINDOW,
    ),
    "OPT": Family(
        of(
            "OPTForCausalLM",
            {key: value for key, value in SMALL.items() if key != "intermediate_size"},
            TIED,
            ffn_dim=D_MLP,
            word_embed_proj_dim=D_MODEL,
        ),
        "learned positions with an offset of 2, ReLU, the MLP lies in the layer itself",
        **{**_OPT, "layers": "model.decoder.layers", "norm": "model.decoder.final_layer_norm"},
    ),
    "OPT-350m": Family(
        of(
            "OPTForCausalLM",
            {key: value for key, value in SMALL.items() if key != "intermediate_size"},
            TIED,
            ffn_dim=D_MLP,
            word_embed_proj_dim=16,
            do_layer_norm_before=False,
        ),
        "norms in the residual stream itself, embeddings narrower than the stream",
        **{**_OPT, "layers": "model.decoder.layers", "norm": "model.decoder.project_out"},
        rewritten=True,
    ),
    "BLOOM": Family(
        of(
            "BloomForCausalLM",
            {key: SMALL[key] for key in ("vocab_size", "hidden_size", "bos_token_id", "eos_token_id", "pad_token_id")},
            n_layer=3,
            n_head=4,
        ),
        "ALiBi, a norm behind the embedding, the attention module adds the residual stream itself",
        **{**_BLOOM, "act": "mlp.gelu_impl"},
    ),
    "MPT": Family(
        of(
            "MptForCausalLM",
            {key: SMALL[key] for key in ("vocab_size", "bos_token_id", "eos_token_id")},
            d_model=32,
            n_heads=4,
            n_layers=3,
            expansion_ratio=2,
            max_seq_len=N_CTX,
        ),
        "ALiBi, no biases, the MLP module adds the residual stream itself",
        layers="transformer.blocks",
        attention="attn",
        output="attn.out_proj",
        middle="norm_2",
        mlp="ffn",
        act="ffn.act",
        down="ffn.down_proj",
        up=None,
        norm="transformer.norm_f",
        n_kv=4,
    ),
    "XGLM": Family(
        of(
            "XGLMForCausalLM",
            vocab_size=D_VOCAB,
            d_model=32,
            ffn_dim=48,
            num_layers=3,
            attention_heads=4,
            max_position_embeddings=N_CTX,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        ),
        "sinusoidal positions, a scaled embedding, the MLP lies in the layer itself",
        **{**_OPT, "layers": "model.layers", "norm": "model.layer_norm"},
    ),
    "CodeGen": Family(
        of("CodeGenForCausalLM", SHORT, rotary_dim=4, n_ctx=N_CTX),
        "parallel, query, value and key fused in blocks, a bias on the logits",
        **{**_GPT, "output": "attn.out_proj", "down": "mlp.fc_out", "middle": None},
    ),
    "Falcon": Family(
        of("FalconForCausalLM", _FALCON, multi_query=True, parallel_attn=True, new_decoder_architecture=False),
        "one key-value head, parallel attention and MLP behind one norm",
        **{**_BLOOM, "middle": None, "n_kv": 1},
    ),
    "Falcon RW": Family(
        of("FalconForCausalLM", _FALCON, multi_query=False, parallel_attn=False, alibi=True, bias=True),
        "ALiBi, which transformers counts twice where it computes attention step by step; attention before the MLP",
        **_BLOOM,
        blind=True,
    ),
    "Falcon (new decoder)": Family(
        of("FalconForCausalLM", _FALCON, num_kv_heads=2, new_decoder_architecture=True),
        "grouped heads, parallel attention and MLP, each behind a norm of its own",
        **{**_BLOOM, "middle": None, "n_kv": 2},
    ),
    "GPTBigCode": Family(of("GPTBigCodeForCausalLM", SHORT), "one key-value head", **{**_GPT, "n_kv": 1}),
    "Llama": Family(of("LlamaForCausalLM", GROUPED), "grouped heads, gated MLP"),
    "Llama, biases": Family(of("LlamaForCausalLM", GROUPED, attention_bias=True, mlp_bias=True), "biases everywhere"),
    "Llama 3": Family(
        of(
            "LlamaForCausalLM",
            GROUPED,
            rope_parameters=rope(
                rope_type="llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        ),
        "rotary angles scaled by frequency",
    ),
    "Llama, dynamic NTK": Family(
        of(
            "LlamaForCausalLM",
            GROUPED,
            max_position_embeddings=SWITCH,
            rope_parameters=rope(rope_type="dynamic", factor=4.0),
        ),
        "rotary angles that change with every token past position 32",
        switch=SWITCH,
    ),
    "Mistral": Family(of("MistralForCausalLM", GROUPED, SLIDING), "a window of 8 in every layer", window=WINDOW),
    "Ministral": Family(
        of("MinistralForCausalLM", WIDE, SLIDING, FOUR, layer_types=["sliding_attention", "full_attention"] * 2),
        "windows of 8 in every second layer",
        n_layers=4,
        window=WINDOW,
    ),
    "Qwen2": Family(of("Qwen2ForCausalLM", GROUPED), "biases on query, key and value"),
    "Qwen2, windows": Family(
        of("Qwen2ForCausalLM", GROUPED, FOUR, SLIDING, use_sliding_window=True, max_window_layers=2),
        "windows of 8 in the upper layers",
        n_layers=4,
        window=WINDOW,
    ),
    "Qwen3": Family(of("Qwen3ForCausalLM", WIDE), "norms on queries and keys"),
    "Gemma": Family(of("GemmaForCausalLM", WIDE, TIED), "a scaled, tied embedding; gains are added to 1"),
    "Gemma 2": Family(
        of("Gemma2ForCausalLM", WIDE, TIED, FOUR, SLIDING, query_pre_attn_scalar=10, final_logit_softcapping=3.0),
        "norms before and behind both parts, soft caps on scores and logits, every second layer a window of 8",
        **_SANDWICH,
        n_layers=4,
        softcap=3.0,
        window=WINDOW,
    ),
    "Gemma 3": Family(
        of(
            "Gemma3ForCausalLM",
            WIDE,
            TIED,
            FOUR,
            SLIDING,
            query_pre_attn_scalar=10,
            layer_types=[*["sliding_attention"] * 2, "full_attention", "sliding_attention"],
        ),
        "norms before and behind both parts and on queries and keys, two kinds of rotary angles, windows of 8",
        **_SANDWICH,
        n_layers=4,
        window=WINDOW,
    ),
    "VaultGemma": Family(
        of("VaultGemmaForCausalLM", WIDE, TIED, FOUR, SLIDING, final_logit_softcapping=3.0),
        "soft caps on scores and logits, windows of 8",
        middle="pre_feedforward_layernorm",
        n_layers=4,
        softcap=3.0,
        window=WINDOW,
    ),
    "Phi": Family(
        of("PhiForCausalLM", SMALL, partial_rotary_factor=0.5),
        "parallel, rotary on half of a head, a bias on the logits",
        **_FC,
        output="self_attn.dense",
        middle=None,
        norm="model.final_layernorm",
        n_kv=4,
    ),
    "Phi-3": Family(
        of("Phi3ForCausalLM", GROUPED), "query, key and value fused, gate and up-projection fused", **_FUSED
    ),
    "Phi-3, longrope": Family(
        of(
            "Phi3ForCausalLM",
            GROUPED,
            original_max_position_embeddings=SWITCH,
            rope_parameters=rope(
                rope_type="longrope",
                short_factor=[1.0] * 4,
                long_factor=[4.0] * 4,
                original_max_position_embeddings=SWITCH,
            ),
        ),
        "all rotary angles change when a text passes 32 positions",
        **_FUSED,
        switch=SWITCH,
    ),
    "StableLM": Family(
        of("StableLmForCausalLM", GROUPED, qk_layernorm=True, use_qkv_bias=True),
        "norms on queries and keys, one per head; rotary on a quarter of a head",
    ),
    "StableLM, parallel": Family(
        of("StableLmForCausalLM", GROUPED, use_parallel_residual=True), "parallel attention and gated MLP", middle=None
    ),
    "Starcoder2": Family(
        of("Starcoder2ForCausalLM", GROUPED, SLIDING),
        "an MLP without a gate, biases, a window of 8 in every layer",
        act="mlp.act",
        down="mlp.c_proj",
        up=None,
        window=WINDOW,
    ),
    "OLMo": Family(
        of("OlmoForCausalLM", GROUPED, clip_qkv=1.5), "norms without weights, queries, keys, values clipped"
    ),
    "OLMo 2": Family(of("Olmo2ForCausalLM", GROUPED), "norms behind both parts and none before them", **_BEHIND),
    "OLMo 3": Family(
        of("Olmo3ForCausalLM", GROUPED, FOUR, SLIDING),
        "norms behind both parts and none before them, windows of 8 in three of four layers",
        **_BEHIND,
        n_layers=4,
        window=WINDOW,
    ),
    "Cohere": Family(
        of("CohereForCausalLM", GROUPED, TIED, logit_scale=0.25, use_qk_norm=True),
        "parallel, norms on queries and keys, scaled logits",
        middle=None,
        logit_scale=0.25,
    ),
    "Cohere 2": Family(
        of("Cohere2ForCausalLM", WIDE, TIED, FOUR, SLIDING, logit_scale=0.25),
        "parallel, scaled logits, windows of 8 with rotary positions beside full layers without positions",
        middle=None,
        logit_scale=0.25,
        n_layers=4,
        window=WINDOW,
    ),
    "Granite": Family(
        of(
            "GraniteForCausalLM",
            GROUPED,
            embedding_multiplier=3.0,
            attention_multiplier=0.3,
            residual_multiplier=0.4,
            logits_scaling=2.0,
        ),
        "multipliers on embedding, scores, residual stream and logits",
        scale=0.4,
        logit_scale=0.5,
    ),
    "GLM": Family(of("GlmForCausalLM", WIDE), "rotary on half of a head, gate and up-projection fused", **_FUSED),
    "GLM-4": Family(
        of("Glm4ForCausalLM", WIDE),
        "norms before and behind both parts, gate and up-projection fused",
        **_FUSED,
        post_attention="post_self_attn_layernorm",
        post_mlp="post_mlp_layernorm",
    ),
    "Nemotron": Family(
        of("NemotronForCausalLM", GROUPED), "squared ReLU without a gate, gains are added to 1", **_PLAIN
    ),
    "Persimmon": Family(
        of("PersimmonForCausalLM", SMALL),
        "squared ReLU without a gate, norms on queries and keys, fused query, key and value",
        output="self_attn.dense",
        act="mlp.act",
        down="mlp.dense_4h_to_h",
        up=None,
        norm="model.final_layernorm",
        n_kv=4,
    ),
    "SmolLM3": Family(
        of("SmolLM3ForCausalLM", GROUPED, FOUR, no_rope_layer_interval=2),
        "every second layer without positions",
        n_layers=4,
    ),
    "Helium": Family(of("HeliumForCausalLM", WIDE), "Llama with rotary pairs side by side"),
    "ERNIE 4.5": Family(of("Ernie4_5ForCausalLM", WIDE, use_bias=True), "biases everywhere"),
    "EXAONE 4": Family(
        of("Exaone4ForCausalLM", GROUPED, FOUR, SLIDING, sliding_window_pattern=4),
        "norms behind both parts and on queries and keys, windows of 8, no positions in the full layer",
        **_BEHIND,
        n_layers=4,
        window=WINDOW,
    ),
    "Apertus": Family(
        of("ApertusForCausalLM", GROUPED, rope_parameters=rope(rope_type="default")),
        "xIELU without a gate, norms on queries and keys",
        **_PLAIN,
        middle="feedforward_layernorm",
    ),
    "Seed-OSS": Family(of("SeedOssForCausalLM", WIDE), "biases on query, key and value"),
    "Arcee": Family(of("ArceeForCausalLM", GROUPED), "squared ReLU without a gate", **_PLAIN),
    "Hunyuan": Family(of("HunYuanDenseV1ForCausalLM", WIDE), "norms on queries and keys behind the rotation"),
    "MiniCPM3": Family(
        of(
            "MiniCPM3ForCausalLM", SMALL, LATENT, num_key_value_heads=4, scale_emb=3, scale_depth=1.4, dim_model_base=16
        ),
        "latent attention (MLA): values of 7, keys of 10; multipliers on embedding, residual stream and logits",
        scale=1.4 / 3**0.5,
        logit_scale=0.5,
        n_kv=4,
    ),
    "Youtu": Family(
        of("YoutuForCausalLM", SMALL, LATENT, num_key_value_heads=4),
        "latent attention (MLA): values of 7, keys of 10",
        n_kv=4,
    ),
    "NanoChat": Family(
        of("NanoChatForCausalLM", GROUPED, final_logit_softcapping=3.0),
        "norms without weights, squared ReLU without a gate, soft cap on logits",
        **_FC,
        softcap=3.0,
    ),
    "BioGPT": Family(
        of("BioGptForCausalLM", SMALL, TIED),
        "learned positions with an offset of 2, a scaled embedding",
        **{**_OPT, "layers": "biogpt.layers", "norm": "biogpt.layer_norm"},
        head="output_projection",
    ),
    "Jais 2": Family(of("Jais2ForCausalLM", GROUPED), "squared ReLU without a gate, biases", **_PLAIN),
    "CWM": Family(
        of("CwmForCausalLM", WIDE, FOUR, SLIDING, rope_parameters=rope(rope_type="default")),
        "windows of 8 in three of four layers",
        n_layers=4,
        window=WINDOW,
    ),
}
