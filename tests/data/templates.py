"""Tokenizers of each kind, built on the spot, and the chat templates of model families as they are published
(what they write; defaults such as dates left out)."""

# ruff: noqa: E501  (templates stand as they are)

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]

CHATML = (
    "{%- if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{%- for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3 = """{%- set ns = namespace(last=messages|length - 1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {%- if m.role != 'assistant' %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- else %}
        {%- set content = m.content %}
        {%- set reasoning = '' %}
        {%- if m.reasoning_content is string %}
            {%- set reasoning = m.reasoning_content %}
        {%- elif '</think>' in m.content %}
            {%- set content = m.content.split('</think>')[-1].lstrip('\\n') %}
            {%- set reasoning = m.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""
LLAMA3 = (
    "{% for m in messages %}{% set c = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set c = bos_token + c %}{% endif %}{{ c }}"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system %}{% set c = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m['content'] %}"
    "{% else %}{% set c = m['content'] %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + c | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + c | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
R1 = (
    "{% set ns = namespace(system='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% set ns.system = m['content'] %}{% endif %}{% endfor %}{{ bos_token }}{{ ns.system }}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{% set c = m['content'] %}{% if '</think>' in c %}"
    "{% set c = c.split('</think>')[-1] %}{% endif %}{{ '<|Assistant|>' + c + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
SMOLLM3 = (
    "{%- set thinking = enable_thinking if enable_thinking is defined else true %}"
    "{%- set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{{- '<|im_start|>system\n## Metadata\nReasoning Mode: ' + ('/think' if thinking else '/no_think') + '\n' }}"
    "{{- system.replace('/no_think', '').rstrip() + '<|im_end|>\n' }}"
    "{%- for m in messages %}{% if m.role == 'user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}"
    "{%- elif m.role == 'assistant' %}{% generation %}{{ '<|im_start|>assistant\n' }}"
    "{%- if not thinking %}{{ '<think>\n\n</think>\n' }}{% endif %}{{ m.content.lstrip('\n') + '<|im_end|>\n' }}"
    "{% endgeneration %}{% endif %}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{%- if not thinking %}{{ '<think>\n\n</think>\n' }}{% endif %}{% endif %}"
)
IM = ["<|im_start|>", "<|im_end|>"]
# Name -> template, its special tokens, EOS, the token that ends a turn.
FAMILIES = {
    "ChatML": (CHATML, IM, "<|im_end|>", "<|im_end|>"),
    "Qwen3": (QWEN3, IM, "<|im_end|>", "<|im_end|>"),
    "Llama 3": (LLAMA3, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "</s>", "<|eot_id|>"),
    "Llama 2": (LLAMA2, [], "</s>", "</s>"),
    "Gemma": (GEMMA, ["<start_of_turn>", "<end_of_turn>"], "</s>", "<end_of_turn>"),
    "Phi-3": (PHI3, ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"], "</s>", "<|end|>"),
    "Mistral": (MISTRAL, [], "</s>", "</s>"),
    "Zephyr": (ZEPHYR, [], "</s>", "</s>"),
    "DeepSeek-R1": (R1, ["<|User|>", "<|Assistant|>"], "</s>", "</s>"),
    "SmolLM3": (SMOLLM3, IM, "<|im_end|>", "<|im_end|>"),
}
THOUGHTS = ["<think>", "</think>"]  # added, and not called special, as in Qwen3
TEXTS = [
    "Once upon a time there was a dog.",
    "What is 2 + 2? It is 4.",
    "user assistant system a b c\n\nd e",
] * 4


def byte_level() -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        TEXTS, trainers.BpeTrainer(special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    )
    return core


def sentencepiece(scheme: str) -> Tokenizer:
    """As Llama 2's (BPE with byte fallback). ``legacy``: a space in front of each text between special tokens;
    ``first``: only in front of the whole."""
    letters = [chr(code) for code in range(33, 127)] + ["\u2581"]
    bytes_ = [f"<0x{code:02X}>" for code in range(256)]
    words = ["\u2581a", "\u2581t", "\u2581ti", "\u2581tim", "\u2581time", "ti", "tim", "im"]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *bytes_, *letters, *words])}
    merges = [("\u2581", "a"), ("\u2581", "t"), ("\u2581t", "i"), ("\u2581ti", "m"), ("\u2581tim", "e")]
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    if scheme == "legacy":
        core.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(SPECIAL)
    return core


def wordpiece() -> Tokenizer:
    core = Tokenizer(models.WordPiece(unk_token="<unk>"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    alphabet = [chr(code) for code in range(33, 127)]
    core.train_from_iterator(
        TEXTS,
        trainers.WordPieceTrainer(special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    return core


def unigram() -> Tokenizer:
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    alphabet = [chr(code) for code in range(33, 127)] + ["\u2581", "\n"]
    core.train_from_iterator(
        TEXTS,
        trainers.UnigramTrainer(
            special_tokens=SPECIAL,
            initial_alphabet=alphabet,
            show_progress=False,
            unk_token="<unk>",
            vocab_size=400,
        ),
    )
    return core


KINDS = {
    "byte-level BPE": byte_level,
    "SentencePiece, legacy": lambda: sentencepiece("legacy"),
    "SentencePiece": lambda: sentencepiece("first"),
    "WordPiece": wordpiece,
    "Unigram": unigram,
}


def tokenizer_of(
    kind: str,
    template: str | None = None,
    special: tuple[str, ...] | list[str] = (),
    eos: str = "</s>",
    around: tuple[bool, bool] = (False, False),
) -> PreTrainedTokenizerFast:
    """A tokenizer of a kind with a template and its special tokens; ``around``: whether it puts BOS in front of
    a text, and EOS behind it."""
    core = KINDS[kind]()
    core.add_special_tokens([token for token in (*special, eos) if core.token_to_id(token) is None])
    if any(around):
        words = ["<s>"] * around[0] + ["$A"] + [eos] * around[1]
        ids = [(token, core.token_to_id(token)) for token in ("<s>", eos)]
        core.post_processor = processors.TemplateProcessing(single=words, special_tokens=ids)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token=eos,
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens(THOUGHTS)
    tokenizer.chat_template = template
    return tokenizer


def family(name: str, kind: str = "byte-level BPE") -> PreTrainedTokenizerFast:
    template, special, eos, _ = FAMILIES[name]
    return tokenizer_of(kind, template, special, eos)
