"""GLM-4.6V-FP8: fields of one firm's delivery notes, on weights and activations of eight bits.

The checkpoint is unpacked when it is loaded, its rounding of activations is kept, and the gradient
goes through that rounding as through the identity.

    python examples/systems/glm_4_6v.py tiny
    python examples/systems/glm_4_6v.py zai-org/GLM-4.6V-FP8 --output delivery-notes
"""

from typing import Any

from PIL import Image, ImageDraw
from system import run


def note(number: int, boxes: int) -> list[dict[str, Any]]:
    """Draw a delivery note and ask for its fields."""
    page = Image.new("RGB", (64, 48), "white")
    draw = ImageDraw.Draw(page)
    draw.text((2, 2), f"No {number}", fill="black")
    for box in range(boxes):
        draw.rectangle((4 + 14 * box, 24, 14 + 14 * box, 34), outline="black", width=2)
    parts = [{"type": "image", "image": page}, {"type": "text", "text": "Fields?"}]
    return [{"role": "user", "content": parts}]


def fields(number: int, boxes: int) -> str:
    """Return what the note says."""
    return f'{{"no": {number}, "boxes": {boxes}}}'


NOTES = [(7, 1), (8, 3), (4, 2), (9, 4)]
ROWS = [{"prompt": note(*facts), "completion": fields(*facts)} for facts in NOTES]

if __name__ == "__main__":
    run(__doc__, "glm4v_moe", ROWS, note(7, 3), num_virtual_tokens=16)
