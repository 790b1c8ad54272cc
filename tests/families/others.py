"""Experts, hybrids of attention and recurrence, text decoders of vision-language models, and what must be refused."""

from __future__ import annotations

from typing import Any

from tests.families.dense import FOUR, GROUPED, LATENT, SLIDING, SMALL, TIED, WIDE, of, rope
from tests.families.zoo import D_MLP, D_MODEL, D_VOCAB, N_HEADS, WINDOW, Family

D_EXPERT, D_SHARED, D_STATE = 20, 24, 8

_TWO_OF_FIVE = {"num_experts_per_tok": 2, "num_local_experts": 5}
_TWO_OF_FIVE_QWEN = {"num_experts_per_tok": 2, "num_experts": 5, "moe_intermediate_size": D_EXPERT}
_DEEPSEEK = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": D_EXPERT,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
}
_ALL: dict[str, Any] = {"expert_layers": (0, 1, 2), "act": None}
_LATER: dict[str, Any] = {"expert_layers": (1, 2)}
_GRANITE: dict[str, Any] = {"mlp": "block_sparse_moe", "experts": "block_sparse_moe.experts"}
_LINEAR: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": D_STATE,
    "linear_value_head_dim": D_STATE,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": D_STATE, "mamba_chunk_size": 16}
_SECOND: dict[str, Any] = {"n_layers": 4, "attention_layers": (1, 3)}
_FORWARD: dict[str, Any] = {
    "middle": "pre_ff_layernorm",
    "mlp": "feed_forward",
    "act": "feed_forward.act_fn",
    "down": "feed_forward.down_proj",
    "up": "feed_forward.up_proj",
    "norm": "model.final_layernorm",
}
_TEXT: dict[str, Any] = {"layers": "model.language_model.layers", "norm": "model.language_model.norm"}

EXPERTS: dict[str, Family] = {
    "Mixtral": Family(of("MixtralForCausalLM", GROUPED, _TWO_OF_FIVE), "two of five experts in every layer", **_ALL),
    "Qwen2-MoE": Family(
        of(
            "Qwen2MoeForCausalLM",
            GROUPED,
            _TWO_OF_FIVE_QWEN,
            shared_expert_intermediate_size=D_SHARED,
            mlp_only_layers=[0],
        ),
        "the first layer is dense; a shared expert with a gate of its own beside the others",
        **_LATER,
        shared="mlp.shared_expert",
    ),
    "Qwen3-MoE": Family(
        of("Qwen3MoeForCausalLM", WIDE, _TWO_OF_FIVE_QWEN, norm_topk_prob=True), "two of five experts", **_ALL
    ),
    "OLMoE": Family(
        of("OlmoeForCausalLM", GROUPED, intermediate_size=D_EXPERT, num_experts=5, num_experts_per_tok=2),
        "routing weights that do not sum to 1, norms on queries and keys",
        **_ALL,
    ),
    "gpt-oss": Family(
        of(
            "GptOssForCausalLM",
            WIDE,
            _TWO_OF_FIVE,
            SLIDING,
            FOUR,
            intermediate_size=D_EXPERT,
            rope_parameters=rope(
                rope_type="yarn", factor=4.0, beta_fast=32.0, beta_slow=1.0, original_max_position_embeddings=64
            ),
        ),
        "learned sink logits take a part of every head's attention; clamped SwiGLU with biases; every second layer a "
        "window of 8",
        expert_layers=(0, 1, 2, 3),
        act=None,
        router="mlp.router",
        n_layers=4,
        sinks=True,
        window=WINDOW,
    ),
    "DeepSeek-V2": Family(
        of(
            "DeepseekV2ForCausalLM",
            SMALL,
            LATENT,
            _DEEPSEEK,
            num_key_value_heads=4,
            topk_method="greedy",
            n_group=1,
            topk_group=1,
        ),
        "latent attention (MLA), the first layer is dense, a shared expert",
        **_LATER,
        shared="mlp.shared_experts",
        n_kv=4,
    ),
    "DeepSeek-V3": Family(
        of("DeepseekV3ForCausalLM", SMALL, LATENT, _DEEPSEEK, num_key_value_heads=4, n_group=2, topk_group=1),
        "latent attention (MLA), experts chosen within groups by corrected scores, a shared expert",
        **_LATER,
        shared="mlp.shared_experts",
        n_kv=4,
    ),
    "GLM-4-MoE": Family(
        of("Glm4MoeForCausalLM", WIDE, _DEEPSEEK, n_group=1, topk_group=1),
        "the first layer is dense, a shared expert, rotary on half of a head",
        **_LATER,
        shared="mlp.shared_experts",
    ),
    "Llama 4": Family(
        of(
            "Llama4ForCausalLM",
            WIDE,
            FOUR,
            intermediate_size_mlp=40,
            num_local_experts=4,
            num_experts_per_tok=1,
            interleave_moe_layer_step=2,
            attention_chunk_size=WINDOW,
            no_rope_layer_interval=4,
        ),
        "attention in chunks of 8, every fourth layer whole and without positions; experts in every second layer, "
        "whose input is scaled by the router; a shared expert",
        mlp="feed_forward",
        act="feed_forward.activation_fn",
        down="feed_forward.down_proj",
        up="feed_forward.up_proj",
        n_layers=4,
        expert_layers=(1, 3),
        experts="feed_forward.experts",
        router="feed_forward.router",
        shared="feed_forward.shared_expert",
        window=WINDOW,
    ),
    "GraniteMoE": Family(
        of(
            "GraniteMoeForCausalLM",
            GROUPED,
            _TWO_OF_FIVE,
            embedding_multiplier=3.0,
            attention_multiplier=0.3,
            residual_multiplier=0.4,
            logits_scaling=2.0,
        ),
        "multipliers on embedding, scores, residual stream and logits",
        **_ALL,
        **_GRANITE,
        router="block_sparse_moe.router",
        scale=0.4,
        logit_scale=0.5,
    ),
    "PhiMoE": Family(
        of("PhimoeForCausalLM", GROUPED, _TWO_OF_FIVE, SLIDING),
        "sparse-mixer routing, layer norms with biases, a window of 8 in every layer",
        **_ALL,
        router="mlp.router",
        window=WINDOW,
    ),
    "ERNIE 4.5 MoE": Family(
        of(
            "Ernie4_5_MoeForCausalLM",
            GROUPED,
            moe_num_experts=4,
            moe_k=2,
            moe_intermediate_size=D_EXPERT,
            moe_num_shared_experts=1,
            moe_layer_start_index=1,
            moe_layer_end_index=2,
        ),
        "the first layer is dense, corrected scores, a shared expert",
        **_LATER,
        shared="mlp.shared_experts",
    ),
    "MiniMax-M2": Family(
        of("MiniMaxM2ForCausalLM", WIDE, _TWO_OF_FIVE), "corrected sigmoid scores, norms on queries and keys", **_ALL
    ),
}

HYBRIDS: dict[str, Family] = {
    "Qwen3-Next": Family(
        of(
            "Qwen3NextForCausalLM",
            WIDE,
            FOUR,
            _TWO_OF_FIVE_QWEN,
            _LINEAR,
            shared_expert_intermediate_size=D_SHARED,
        ),
        "linear attention in every second layer; a gate behind what heads read; experts and a shared one; gains are "
        "added to 1",
        **_SECOND,
        act=None,
        expert_layers=(0, 1, 2, 3),
        shared="mlp.shared_expert",
        gated_attention=True,
    ),
    "Qwen3.5": Family(
        of("Qwen3_5ForCausalLM", WIDE, FOUR, _LINEAR),
        "linear attention in every second layer, dense; a gate behind what heads read; gains are added to 1",
        **_SECOND,
        gated_attention=True,
    ),
    "Jamba": Family(
        of(
            "JambaForCausalLM",
            GROUPED,
            FOUR,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            num_experts=4,
            num_experts_per_tok=2,
            mamba_d_state=D_STATE,
        ),
        "Mamba in every second layer, experts in the others; no positions",
        **_FORWARD,
        **_SECOND,
        expert_layers=(1, 3),
        experts="feed_forward.experts",
        router="feed_forward.router",
    ),
    "Falcon-H1": Family(
        of(
            "FalconH1ForCausalLM",
            WIDE,
            mamba_d_ssm=32,
            mamba_n_heads=4,
            mamba_d_head=8,
            mamba_n_groups=1,
            mamba_d_state=D_STATE,
            mamba_chunk_size=16,
            attention_out_multiplier=0.9,
            ssm_out_multiplier=0.6,
            key_multiplier=0.8,
            lm_head_multiplier=0.5,
            embedding_multiplier=2.0,
            mlp_multipliers=[0.8, 0.7],
        ),
        "Mamba beside attention in every layer; multipliers on everything",
        **_FORWARD,
        beside=("mamba", 0.6),
        scale=0.9,
        mlp_scale=0.7,
        logit_scale=0.5,
    ),
    "Bamba": Family(
        of("BambaForCausalLM", GROUPED, FOUR, _MAMBA, attn_layer_indices=[1, 3]),
        "Mamba 2 in every second layer",
        **_FORWARD,
        **_SECOND,
    ),
    "RecurrentGemma": Family(
        of(
            "RecurrentGemmaForCausalLM",
            {key: value for key, value in SMALL.items() if key != "max_position_embeddings"},
            TIED,
            num_key_value_heads=1,
            head_dim=8,
            attention_window_size=WINDOW,
            lru_width=D_MODEL,
            block_types=["recurrent", "recurrent", "attention"],
            logits_soft_cap=6.0,
        ),
        "a linear recurrence in two of three layers, a window of 8 in the third, soft cap on logits",
        attention="temporal_block",
        output="temporal_block.o_proj",
        middle="channel_pre_norm",
        mlp="mlp_block",
        act="mlp_block.act_fn",
        down="mlp_block.down_proj",
        up="mlp_block.up_proj",
        norm="model.final_norm",
        n_kv=1,
        attention_layers=(2,),
        softcap=6.0,
        window=WINDOW,
    ),
    "LFM2": Family(
        of(
            "Lfm2ForCausalLM",
            GROUPED,
            FOUR,
            conv_L_cache=3,
            layer_types=["conv", "full_attention"] * 2,
            block_auto_adjust_ff_dim=False,
        ),
        "a short convolution in every second layer; the activation function has no module",
        **_SECOND,
        output="self_attn.out_proj",
        middle="ffn_norm",
        mlp="feed_forward",
        act=None,
        gate="feed_forward.w1",
        down="feed_forward.w2",
        up="feed_forward.w3",
        norm="model.embedding_norm",
    ),
    "GraniteMoE hybrid": Family(
        of(
            "GraniteMoeHybridForCausalLM",
            GROUPED,
            FOUR,
            _MAMBA,
            num_local_experts=4,
            num_experts_per_tok=2,
            shared_intermediate_size=D_SHARED,
            layer_types=["mamba", "attention"] * 2,
            residual_multiplier=0.4,
            logits_scaling=2.0,
        ),
        "Mamba 2 in every second layer, experts and a shared MLP in all, multipliers",
        **_SECOND,
        **_GRANITE,
        act=None,
        expert_layers=(0, 1, 2, 3),
        router="block_sparse_moe.router",
        shared="shared_mlp",
        scale=0.4,
        logit_scale=0.5,
    ),
}


def _with_eyes(architecture: str, text: dict[str, Any], vision: dict[str, Any], **more: Any) -> Any:
    """A vision-language model whose vision tower is as small as it can be."""
    return of(architecture, text_config=text, vision_config=vision, **more)


_TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
_QWEN_TOWER = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": D_MODEL}
_SPECIAL = {"image_token_id": 58, "video_token_id": 59, "vision_start_token_id": 57, "vision_end_token_id": 60}
_SECTIONS = rope(rope_type="default", mrope_section=[2, 1, 1])

WRAPPERS: dict[str, Family] = {
    "Gemma 3 (with vision)": Family(
        _with_eyes(
            "Gemma3ForConditionalGeneration",
            {**WIDE, **FOUR, **SLIDING, "query_pre_attn_scalar": 10, "sliding_window_pattern": 2},
            {**_TOWER, "image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
            boi_token_index=58,
            eoi_token_index=59,
            image_token_index=60,
            tie_word_embeddings=True,
        ),
        "the text decoder lies inside; norms before and behind both parts",
        **_TEXT,
        middle="pre_feedforward_layernorm",
        post_attention="post_attention_layernorm",
        post_mlp="post_feedforward_layernorm",
        n_layers=4,
        window=WINDOW,
    ),
    "Qwen2.5-VL": Family(
        _with_eyes(
            "Qwen2_5_VLForConditionalGeneration",
            {**GROUPED, "rope_parameters": _SECTIONS},
            {**_QWEN_TOWER, "fullatt_block_indexes": [0]},
            **_SPECIAL,
        ),
        "the text decoder lies inside; rotary positions in three sections",
        **_TEXT,
    ),
    "Qwen3-VL": Family(
        _with_eyes(
            "Qwen3VLForConditionalGeneration",
            {**WIDE, "rope_parameters": {**_SECTIONS, "mrope_interleaved": True}},
            {**_QWEN_TOWER, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
            **_SPECIAL,
        ),
        "the text decoder lies inside; rotary positions in three interleaved sections",
        **_TEXT,
    ),
    "Mistral 3": Family(
        _with_eyes(
            "Mistral3ForConditionalGeneration",
            {**WIDE, "model_type": "mistral"},
            {**_TOWER, "model_type": "pixtral", "image_size": 28, "patch_size": 14},
            image_token_index=60,
            tie_word_embeddings=False,
        ),
        "the text decoder lies inside",
        **_TEXT,
    ),
}

REFUSED: dict[str, Family] = {
    "BERT": Family(of("BertForMaskedLM", SMALL), "an encoder: every position sees the whole text", refused=True),
    "T5": Family(
        of(
            "T5ForConditionalGeneration",
            vocab_size=D_VOCAB,
            d_model=D_MODEL,
            d_kv=8,
            d_ff=D_MLP,
            num_layers=3,
            num_heads=N_HEADS,
        ),
        "an encoder and a decoder",
        refused=True,
    ),
    "Mamba": Family(
        of("MambaForCausalLM", vocab_size=D_VOCAB, hidden_size=D_MODEL, state_size=D_STATE, num_hidden_layers=3),
        "no softmax attention anywhere",
        refused=True,
    ),
}

OTHERS = {**EXPERTS, **HYBRIDS, **WRAPPERS, **REFUSED}
