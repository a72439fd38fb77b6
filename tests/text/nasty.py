# ruff: noqa: E501, RUF001 - strings that look like others are what this file is about
"""A thousand strings that tokenizers have been caught on, the same ones every time."""

import random

PARTS = [
    "a photo of a cat", "The QUICK brown fox", "it's", "they'll", "we'd've", "''s", "’s", "don't!!!",
    "", " ", "  ", "\t", "\n\n", "\r\n", "\u00a0", "\u3000", "\u2028", "\u200b", "\u200d", "\ufeff", "\x00", "\x07",
    "\x1b[31m", "\x85", "\u202e", "é", "e\u0301", "Å", "A\u030a", "ﬁ", "½", "²", "①", "Ⅷ", "ß", "ẞ", "İ", "ı", "ŉ", "ΟΔΟΣ", "ςσΣ",
    "日本語のテキスト", "中文,没有空格", "한국어", "한국어", "العربية", "हिन्दी", "ไทย", "עברית", "Ελληνικά", "кириллица",
    "🦊", "👩‍👩‍👧‍👦", "🇩🇪🇫🇷", "👍🏽", "☺️", "(╯°□°)╯︵ ┻━┻", "𝕳𝖊𝖑𝖑𝖔", "𐍈", "\U0010ffff", "\ufffd",
    "<|startoftext|>", "<|endoftext|>", "<|STARTOFTEXT|>", "<start_of_text>", "<end_of_text>", "<s>", "</s>", "<pad>", "<unk>",
    "</w>", "x</w>", "▁", "▁▁the", "Ġ", "<0x0A>", "[MASK]", "&amp;", "&lt;b&gt;", "&amp;amp;", "&#39;", "&nbsp;", "sâ€™ mojibake", "Ã©",
    "3.14159", "1,000,000", "2024-01-31", "12345678901234567890", "v2.0-beta_3", "snake_case_name", "CamelCase", "C++", "#hashtag", "@user",
    "https://example.org/a?b=c&d=%20", "user@example.org", "../../etc/passwd", "'; DROP TABLE cats; --", "{}", "{0}", "%s", "\\n", "\\",
    "!" * 30, "a" * 90, "." * 7, "-–—―", "“quoted”", "«guillemets»", "…", "·", "™", "©", "€$£¥", "∑∫√∞≠", "→⇒", "♥♦♣♠", "♫",
]  # fmt: skip


def nasty(count: int = 1000, seed: int = 0) -> list[str]:
    """Every part alone, then parts joined, random characters, and very long texts."""
    draw = random.Random(seed)
    texts = list(PARTS)
    while len(texts) < count:
        kind = len(texts) % 4
        if kind < 2:
            some = draw.choices(PARTS, k=draw.randint(2, 8))
            texts.append(draw.choice(["", " ", " ", "  "]).join(some))
        elif kind == 2:
            planes = [
                (1, 0x7F),
                (0x80, 0x24F),
                (0x250, 0x2FFF),
                (0x3000, 0xD7FF),
                (0x1F300, 0x1FAFF),
            ]
            texts.append(
                "".join(chr(draw.randint(*draw.choice(planes))) for _ in range(draw.randint(1, 40)))
            )
        else:
            words = draw.choices(PARTS, k=draw.choice([3, 30, 300]))
            texts.append(" ".join(words))
    return texts[:count]
