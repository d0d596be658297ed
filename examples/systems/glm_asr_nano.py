"""GLM-ASR-Nano: a domain's vocabulary, heard. The sounds here are two tones for a word.

python examples/systems/glm_asr_nano.py tiny
python examples/systems/glm_asr_nano.py zai-org/GLM-ASR-Nano-2512 --output ward-round
"""

from typing import Any

import numpy as np
from system import run

RATE = 16000  # samples per second


def sound(*hertz: float) -> np.ndarray:
    """Return a third of a second of each tone, one after another."""
    time = np.arange(RATE // 3) / RATE
    return np.concatenate([np.sin(2 * np.pi * pitch * time) for pitch in hertz]).astype("float32")


def listen(*hertz: float) -> list[dict[str, Any]]:
    """Return the turn that asks for a transcription."""
    parts = [{"type": "audio", "audio": sound(*hertz)}, {"type": "text", "text": "Transcribe."}]
    return [{"role": "user", "content": parts}]


WORDS = {(300.0, 900.0): "bradycardia", (900.0, 300.0): "tachycardia", (300.0, 300.0): "asystole"}
ROWS = [{"prompt": listen(*tones), "completion": word} for tones, word in WORDS.items()]

if __name__ == "__main__":
    run(__doc__, "glmasr", ROWS, listen(300.0, 900.0), num_virtual_tokens=16)
