"""Whether a learning rate carries over: the same job on two models, at a grid of rates.

    python benchmarks/rates.py [MODEL ...] [--task "home commands"] [--steps 20]
        [--methods prompt-tuning prefix-tuning] [--rates 1e-3 1e-2]

For each model the scale of what is trained, as its root mean square at the start: embeddings, keys,
values. Then the loss on held-out rows for every method and rate. If the best rate is the same share
of the scale on every model, rates should be given relative to it; if it is the same number, they
should not.
"""

import argparse

import torch
from defaults import quiet, start_of
from quality_data import TASKS
from quality_systems import ROWS

from foreword import Backbone, TrainConfig, train
from foreword.training.start import initial_prompt

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


def scale(values: list[torch.Tensor]) -> str:
    """Return the root mean square of all values."""
    flat = torch.cat([one.float().flatten() for one in values])
    return f"{flat.pow(2).mean().sqrt():.3g}"


def main() -> None:
    """Print scales, and one line for each rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["smollm2-135m"])
    parser.add_argument("--task", default="home commands", choices=TASKS)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--methods", nargs="+", default=["prompt-tuning", "prefix-tuning"])
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    arguments = parser.parse_args()
    quiet()
    task = TASKS[arguments.task]()
    for model in arguments.models:
        backbone = Backbone.load(model)
        for method in arguments.methods:
            start = start_of(task, method)
            print(f"\n{backbone.capabilities.model_type} {method}", end="")
            is_drawn = method != "context-tuning"  # whose start is of the rows
            print(f": {scales(backbone, TrainConfig(**start).resolved())}" if is_drawn else "")
            for rate in arguments.rates:
                config = TrainConfig(
                    **start, learning_rate=rate, batch_size=8, num_steps=arguments.steps,
                    eval_every=0,
                )  # fmt: skip
                *_, last = train(
                    backbone,
                    list(task.train),
                    config,
                    validation=list(task.validation),
                    encoding_config=ROWS,
                )
                assert last.validation is not None
                print(f"  {rate:g}: loss {last.validation.loss:.3f}", flush=True)


def scales(backbone: Backbone, config: TrainConfig) -> str:
    """Return the scale of each kind of values of a method's first prompt."""
    prompt = initial_prompt(backbone, config)
    if prompt.form == "embeddings":
        return f"embeddings {scale([prompt.embeddings])}"
    keys, values = zip(*prompt.key_values, strict=True)
    return f"keys {scale(list(keys))}, values {scale(list(values))}"


if __name__ == "__main__":
    main()
