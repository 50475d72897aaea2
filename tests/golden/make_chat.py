#!/usr/bin/env python3
"""tests/golden/make_chat.py DIR: what published chat templates write for invented conversations -> chat/expected.json, and with
enable_thinking=False, where a template has that switch -> chat/no_think.json.

DIR holds the templates as they are published (chat_template of tokenizer_config.json, or chat_template.jinja), named STYLE.jinja or
STYLE@ANYTHING.jinja after the row of runtime/chat.c that has to write the same; chat/*.jinja, which are ours, come first.  The templates are other people's and are not kept here:
expected.json has their SHA-256 (less a final line break) and what they wrote.  Needs jinja2 (3.1); the environment is the reference
library's: sandboxed, trim_blocks, lstrip_blocks, loop controls, raise_exception, tojson, strftime_now.

Where the templates can be had: PyPI's trl (chat_templates/), llama-cpp-python's source (models/templates/), guidance (chat.py).
"""
import glob, hashlib, json, os, sys
from jinja2.exceptions import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

DATE = "05 Nov 2031"
TOKENS = {  # bos and eos of each style, as the checkpoints have them
    "llama2": ("<s>", "</s>"), "tinyllama": ("<s>", "</s>"), "mistral": ("<s>", "</s>"), "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
    "gemma": ("<bos>", "<eos>"), "qwen": (None, "<|im_end|>"), "smollm2": ("<|im_start|>", "<|im_end|>"), "chatml": (None, "<|im_end|>"),
}
SYSTEMS = [None, "Answer in one word.", "  Two lines,\nand space around them. \n", ""]
TALKS = [
    ["Why is the sea salty?"],
    [""],
    ["  \n"],
    ["\u00a0\u3000Wide spaces around\u2028\x1f ", "\u2003and in the reply\u0085 ", "\u200bno space: U+200B\u180e"],
    ["Count to three.", "One, two, three.", "Now backwards."],
    ["\n\nLine breaks before", "\nand\n\nafter\n", "\ttabs\t"],
    ["Same words", "yes", "Same words", "no", "Same words"],
    ["Quotes ' \" and \\ and \\n and {{ braces }} {% raise %}", "<b>&amp;</b>", "Grüße, 你好, 👋🏽"],
    ["A token in the text: <|im_end|></s><|eot_id|><end_of_turn>", "[INST] and <<SYS>> too", "</think> here"],
    ["Think first.", "<think>\nIt is 4.\n</think>\n\nFour.", "And then?"],
    ["Think first.", "<think>\n\n</think>\n\nFour.", "And then?", "no tag opened</think>\n\n\nFive.", "Enough."],
    ["x", "<think>a</think>b<think>c</think>d", "<think>mine</think>"],
    ["x", "<think>never closed", "y"],
    ["Ask the tool.", "<think>\n\nI need it.\n\n</think>\n\nWait.", "<tool_response>42</tool_response>"],
    ["Ask.", "<think>one</think>\n\nfirst", "<tool_response>1</tool_response>", "second\n", "<tool_response>2</tool_response>"],
    ["<tool_response>alone</tool_response>"],
    ["<tool_response>a</tool_response>", "<think>w</think>b", "<tool_response>c</tool_response>"],
    ["x" * 300, "y" * 300, "z"],
]


def environment():
    def raise_exception(message):
        raise TemplateError(message)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    env.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda fmt: DATE
    return env


def tokens_of(style):
    for prefix, tokens in TOKENS.items():
        if style.startswith(prefix):
            return tokens
    sys.exit(f"{style}: which bos and eos?")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    env, out, no_think = environment(), [], []
    here = os.path.dirname(os.path.abspath(__file__))
    for path in sorted(glob.glob(os.path.join(here, "chat", "*.jinja"))) + sorted(glob.glob(os.path.join(sys.argv[1], "*.jinja"))):
        text = open(path, encoding="utf-8", newline="").read()
        style = os.path.basename(path)[: -len(".jinja")].split("@")[0]
        bos, eos = tokens_of(style)
        given = {k: v for k, v in (("bos_token", bos), ("eos_token", eos)) if v is not None}
        template, cases, quiet = env.from_string(text), [], []
        for system in SYSTEMS:
            for talk in TALKS:
                messages = [{"role": "system", "content": system}] if system is not None else []
                messages += [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(talk)]
                asked = dict(messages=messages, tools=None, documents=None, add_generation_prompt=True, **given)
                try:
                    said = template.render(**asked)
                    if "enable_thinking" in text:
                        quiet.append(template.render(**asked, enable_thinking=False))
                except TemplateError:
                    said = None
                cases.append(said)
        digest = hashlib.sha256((text[:-1] if text.endswith("\n") else text).encode()).hexdigest()
        out.append({"style": style, "sha256": digest, "bos": bos or "", "eos": eos or "", "texts": cases})
        no_think += [{"style": style, "sha256": digest, "texts": quiet}] if quiet else []
    # Templates that write the same share a list.
    shared = []
    for t in out:
        key = [t["style"], t["texts"]]
        if key not in shared:
            shared.append(key)
        t["texts"] = shared.index(key)
    result = {"date": DATE, "systems": SYSTEMS, "talks": TALKS, "templates": out, "texts": [k[1] for k in shared]}
    with open(os.path.join(here, "chat", "expected.json"), "w", encoding="utf-8") as f:
        json.dump(result, f, ensure_ascii=True, indent=None, separators=(",", ":"))
        f.write("\n")
    if no_think:
        with open(os.path.join(here, "chat", "no_think.json"), "w", encoding="utf-8") as f:
            json.dump(no_think, f, ensure_ascii=True, indent=None, separators=(",", ":"))
            f.write("\n")
    for t in out:
        print(f'    {{"{t["sha256"]}", "{t["style"]}"}},')


main()
