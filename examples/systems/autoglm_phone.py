"""AutoGLM-Phone-9B: screenshots in, actions out; an agent that learns one app's habits.

python examples/systems/autoglm_phone.py tiny
python examples/systems/autoglm_phone.py zai-org/AutoGLM-Phone-9B --output my-app
"""

from typing import Any

from PIL import Image, ImageDraw
from system import run


def screen(*buttons: str) -> Image.Image:
    """Draw a phone screen: buttons under each other."""
    picture = Image.new("RGB", (32, 64), "white")
    draw = ImageDraw.Draw(picture)
    for row, label in enumerate(buttons):
        draw.rectangle((2, 4 + 20 * row, 30, 18 + 20 * row), fill="steelblue")
        draw.text((4, 5 + 20 * row), label, fill="white")
    return picture


def see(picture: Image.Image, text: str = "") -> dict[str, Any]:
    """Return the user's turn: a screenshot, and a task in the first one."""
    parts: list[dict[str, Any]] = [{"type": "image", "image": picture}]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def act(action: str) -> dict[str, Any]:
    """Return the agent's turn."""
    return {"role": "assistant", "content": action}


HOME, CART, DONE = screen("shop", "mail"), screen("cart", "pay"), screen("thanks")
OPEN, PAY = 'do(action="Tap", element=[16,11])', 'do(action="Tap", element=[16,31])'
TASK = "Pay for what is in the cart."
# One task, told three times: after one, two and three screenshots.
TURNS = [see(HOME, TASK), act(OPEN), see(CART), act(PAY), see(DONE), act('finish(message="Paid.")')]
ROWS = [{"messages": TURNS[:count]} for count in (2, 4, 6)]

if __name__ == "__main__":
    question = [see(HOME, TASK), act(OPEN), see(CART)]
    run(__doc__, "glm4v", ROWS, question, num_virtual_tokens=16)
