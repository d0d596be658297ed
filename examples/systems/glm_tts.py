"""GLM-TTS: a voice as a prefix. The model is a llama that speaks in tokens of sound; a flow model
behind it, which is not touched, makes a waveform of them.

Its own decoding stays as it is: fed by embeddings, sampled with a penalty on repetition, the end of
audio forbidden before twice and forced at twenty times the length of the text.

    python examples/systems/glm_tts.py tiny
    python examples/systems/glm_tts.py DIRECTORY-OF-THE-LLAMA --output voice
"""

import argparse

import tiny
import torch
from torch import Tensor
from transformers import LogitsProcessor

from foreword import Backbone, Row, TrainConfig, train

SHORTEST, LONGEST = 2, 20  # times the tokens of the text


class RepetitionAware(LogitsProcessor):
    """Repetition-aware sampling, as one distribution (Chen et al. 2024, arXiv:2406.05370, 3.3).

    A token is drawn from the nucleus; one that is frequent among the last `window` is drawn again,
    from all tokens. So its probability in the nucleus goes to all of them, each by its own.
    """

    def __init__(self, top_p: float = 0.8, window: int = 10, most: float = 0.1):
        self.top_p, self.window, self.most = top_p, window, most

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return log probabilities `[B, V]`."""
        whole = scores.softmax(-1)
        ordered, order = whole.sort(-1, descending=True)
        is_in = torch.zeros_like(whole, dtype=torch.bool).scatter(
            -1, order, ordered.cumsum(-1) - ordered < self.top_p
        )
        nucleus = whole * is_in / (whole * is_in).sum(-1, keepdim=True)
        recent = input_ids[:, -self.window :]
        counts = torch.zeros_like(whole).scatter_add(-1, recent, torch.ones_like(recent) * 1.0)
        is_frequent = counts / self.window > self.most
        again = (nucleus * is_frequent).sum(-1, keepdim=True)
        return (nucleus * ~is_frequent + again * whole).log()


def speech(backbone: Backbone, text: str, pitch: int) -> Row:
    """Return a row: the text, and the sound tokens of a voice of one pitch."""
    ids = backbone.tokenizer(text).input_ids
    begin, end = backbone.tokenizer.convert_tokens_to_ids(tiny.MARKS)
    names = [tiny.SPEECH[(pitch + index % 3) % len(tiny.SPEECH)] for index in range(3 * len(ids))]
    sound = backbone.tokenizer.convert_tokens_to_ids(names)
    return Row.from_ids([*ids, begin], [*sound, end])


def main() -> None:
    """Train a voice and speak a sentence with it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help='the directory of the llama; "tiny" for random weights')
    parser.add_argument("--output", help="directory for the trained voice")
    given = parser.parse_args()
    backbone = Backbone.load(tiny.checkpoint("llama") if given.model == "tiny" else given.model)
    rows = [speech(backbone, text, pitch=7) for text in ("hi", "yes", "good day", "no")]
    config = TrainConfig(num_steps=60, batch_size=4, num_virtual_tokens=16, eval_every=0)
    events = list(train(backbone, rows, config))
    print(f"{backbone}: loss {events[0].loss:.2f} -> {events[-1].loss:.2f}")
    prompt = events[-1].prompt

    begin, end = backbone.tokenizer.convert_tokens_to_ids(tiny.MARKS)
    sounds = {*backbone.tokenizer.convert_tokens_to_ids(tiny.SPEECH), end}
    text = backbone.tokenizer("good", return_tensors="pt").input_ids
    ids = torch.cat([text, torch.tensor([[begin]])], 1)
    torch.manual_seed(0)
    found = backbone.generate(
        prompt,
        inputs_embeds=backbone.embed(ids),
        do_sample=True,
        logits_processor=[RepetitionAware()],
        min_new_tokens=SHORTEST * text.shape[1],
        max_new_tokens=LONGEST * text.shape[1],
        suppress_tokens=[i for i in range(backbone.capabilities.vocab_size) if i not in sounds],
        eos_token_id=end,
        pad_token_id=0,
    )
    print(f"{found.shape[1]} sound tokens: {backbone.tokenizer.decode(found[0])}")
    if given.output:
        prompt.save(given.output)


if __name__ == "__main__":
    main()
