"""HunyuanOCR: one form, read into one layout.

python examples/systems/hunyuan_ocr.py tiny
python examples/systems/hunyuan_ocr.py tencent/HunyuanOCR --output my-form
"""

from typing import Any

from PIL import Image, ImageDraw
from system import run


def form(name: str, is_member: bool) -> list[dict[str, Any]]:
    """Draw a form, as its users fill it in; the system turn is empty, as the model expects."""
    page = Image.new("RGB", (64, 32), "white")
    draw = ImageDraw.Draw(page)
    draw.text((2, 2), name, fill="black")
    draw.rectangle((48, 18, 58, 28), outline="black", fill="black" if is_member else "white")
    parts = [{"type": "image", "image": page}, {"type": "text", "text": "Read the form."}]
    return [{"role": "system", "content": ""}, {"role": "user", "content": parts}]


def lines(name: str, is_member: bool) -> str:
    """Return the layout that the firm wants."""
    return f"name={name};member={'yes' if is_member else 'no'}"


PEOPLE = [("Ann", True), ("Bob", False), ("Cem", True), ("Dora", False)]
ROWS = [{"prompt": form(*facts), "completion": lines(*facts)} for facts in PEOPLE]

if __name__ == "__main__":
    run(__doc__, "hunyuan_vl", ROWS, form("Ann", False), num_virtual_tokens=16)
