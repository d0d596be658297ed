"""Messages with images and sounds: real processors, training on them, files of them."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import media_oracle
import numpy
import pytest
import soundfile
import tiny_media
import tiny_models
import tiny_processors
import torch
from tiny_media import MediaRow
from tiny_processors import picture, tone
from typer.testing import CliRunner

from foreword import Backbone, EncodingConfig, SoftPrompt, TrainConfig, chat, read_examples, train
from foreword.cli import app
from foreword.data.batches import collate
from foreword.data.columns import as_examples
from foreword.data.encoding import Media, Row, encode_examples
from foreword.data.example import Example
from foreword.errors import DataError, DependencyError, UnsupportedError
from foreword.prompt.prefix import Prefix, same_prefix
from foreword.training.loss import score_labels

IMAGE_FAMILIES = [f for f in tiny_processors.FAMILIES if f not in ("glmasr", "qwen2_audio")]
GREEDY = {"max_new_tokens": 4, "do_sample": False}


def backbone_of(family: str) -> Backbone:
    model, processor = tiny_processors.shared(family)
    return Backbone(model, processor=processor)


def prompt_for(backbone: Backbone) -> SoftPrompt:
    return SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, 4))


def part_of(family: str, folder: Path, number: int) -> dict[str, Any]:
    """Return one part of a message: a drawn picture, or a computed tone."""
    if family in ("glmasr", "qwen2_audio"):
        path = tone(folder / f"{number}.wav", 0.3 + 0.2 * number, 300.0 * (number + 1))
        return {"type": "audio", "path": str(path)}
    return {"type": "image", "image": picture(8 + 8 * number, 8, str(number))}


def example_of(family: str, folder: Path, number: int) -> Example:
    question = {"type": "text", "text": "what?"}
    turn = {"role": "user", "content": [part_of(family, folder, number), question]}
    return Example(
        ({"role": "system", "content": "Be short."}, turn), f"a{number}", f"row {number}"
    )


def rows_of(backbone: Backbone, examples: list[Example]) -> list[Row]:
    return encode_examples(examples, backbone.tokenizer, EncodingConfig(), 512, backbone.processor)[
        0
    ]


def media_row(row: Row, num_ids: int | None = None) -> MediaRow:
    media = {
        name: value.double() if value.is_floating_point() else value
        for name, value in (row.media.tensors if row.media else {}).items()
    }
    return MediaRow(torch.tensor(row.input_ids[:num_ids]), media)


# Processors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny_processors.FAMILIES)
def test_what_the_processor_returns_is_generated_from(family: str, tmp_path: Path) -> None:
    backbone = backbone_of(family)
    prompt = prompt_for(backbone)
    examples = [example_of(family, tmp_path, number) for number in range(2)]
    rows = rows_of(backbone, examples)
    texts = [example.prompt for example in examples]
    found = list(chat.answers(backbone, prompt, texts, max_new_tokens=4))
    for row, answer in zip(rows, found, strict=True):
        before = media_row(row, -row.num_labels)
        ids = media_oracle.greedy(backbone.model, prompt, before, 4)
        end = ids.index(2) if 2 in ids else 4
        expected = backbone.tokenizer.decode(ids[:end], skip_special_tokens=True)
        assert answer.text == expected


@pytest.mark.parametrize("family", [*IMAGE_FAMILIES])
def test_a_users_own_call_of_the_processor_is_read(family: str) -> None:
    backbone = backbone_of(family)
    prompt = prompt_for(backbone)
    part = {"type": "image", "image": picture(12, 8)}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "ab"}]}]
    inputs = backbone.processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    output = backbone.generate(prompt, **inputs, **GREEDY)
    names = {"pixel_values", "image_grid_thw"} & set(inputs)
    media = {name: inputs[name] for name in names}
    media["pixel_values"] = media["pixel_values"].double()
    row = MediaRow(inputs["input_ids"][0], media)
    assert output[0, len(row.ids) :].tolist() == media_oracle.greedy(backbone.model, prompt, row, 4)


def test_encoding_begins_as_generation_does(tmp_path: Path) -> None:
    backbone = backbone_of("glm4v")
    example = example_of("glm4v", tmp_path, 1)
    [row] = rows_of(backbone, [example])
    before = chat.encode_row(backbone, example.prompt, EncodingConfig())
    assert row.input_ids[: -row.num_labels] == before.input_ids
    assert row.media == before.media
    assert backbone.tokenizer.decode(row.input_ids[-row.num_labels :]) == "a1<|im_end|>"


# Training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny_processors.FAMILIES)
def test_gradients_are_those_of_concatenation(family: str, tmp_path: Path) -> None:
    processor = tiny_processors.processor(family)
    model = tiny_models.with_exact_norms(tiny_media.build(family, vocabulary=processor.tokenizer))
    backbone = Backbone(model, processor=processor)
    prompt = prompt_for(backbone).trainable(torch.float64)
    text = Example("plain?", "no", "row 2")
    examples = [*(example_of(family, tmp_path, number) for number in range(2)), text]
    rows = rows_of(backbone, examples)
    prefix = Prefix(backbone.prefill(prompt), "trained")
    found = score_labels(backbone, same_prefix(prefix, 3), collate(rows, 0)).losses.sum()
    (gradient,) = torch.autograd.grad(found, prompt.tensors)
    expected = torch.zeros(())
    for row in rows:
        logits = media_oracle.row_logits(
            backbone.model, prompt, media_row(row), torch.tensor(row.input_ids)
        )
        labels = torch.tensor(row.input_ids[-row.num_labels :])
        scores = logits[-row.num_labels - 1 : -1]
        expected = expected + torch.nn.functional.cross_entropy(scores, labels, reduction="sum")
    (own,) = torch.autograd.grad(expected, prompt.tensors)
    assert abs((found - expected).item()) < 1e-9
    # The rotation of hunyuan_vl is computed in float32, whatever the dtype.
    tolerance = 1e-6 if family == "hunyuan_vl" else 1e-9
    assert float((gradient - own).norm() / own.norm()) < tolerance
    assert float(own.norm()) > 1e-3


@pytest.mark.parametrize("family", tiny_processors.FAMILIES)
def test_the_loss_falls(family: str, tmp_path: Path) -> None:
    examples = [example_of(family, tmp_path, number) for number in range(2)]
    config = TrainConfig(
        num_virtual_tokens=4, num_steps=6, batch_size=2, form="embeddings", learning_rate=0.3
    )
    events = list(train(backbone_of(family), examples, config, validation=examples[:1]))
    assert events[-1].loss < events[0].loss - 0.1
    assert events[-1].prompt is not None


def test_rows_of_media_keep_micro_batches_equal(tmp_path: Path) -> None:
    examples = [example_of("qwen3_vl", tmp_path, number) for number in range(3)]
    losses = []
    for size in (1, 3):
        config = TrainConfig(num_virtual_tokens=4, num_steps=2, batch_size=3, micro_batch_size=size)
        losses.append([event.loss for event in train(backbone_of("qwen3_vl"), examples, config)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_model_of_text_refuses_rows_with_images() -> None:
    backbone = Backbone(tiny_models.shared("llama"))
    media = Media({"pixel_values": torch.zeros(4, 24)})
    rows = [Row((5, 6, 7), 1, "here", media)]
    initial = SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, 2))
    with pytest.raises(UnsupportedError, match="takes no pixel_values"):
        next(train(backbone, rows, TrainConfig(num_steps=1), initial=initial))


def test_rows_are_equal_where_their_media_is() -> None:
    one, same, other = (Media({"a": torch.full((2,), float(n))}) for n in (1, 1, 2))
    assert (one, hash(one)) == (same, hash(same))
    assert Row((1, 2), 1, "x", one) == Row((1, 2), 1, "x", same) != Row((1, 2), 1, "x", other)
    assert len({Row((1, 2), 1, "x", one), Row((1, 2), 1, "x", same)}) == 1


def test_features_of_different_sizes_are_refused() -> None:
    rows = [Row((1, 2), 1, "a", Media({"x": torch.zeros(1, 3)}))]
    rows.append(Row((1, 2), 1, "b", Media({"x": torch.zeros(1, 4)})))
    with pytest.raises(DataError, match="b: x is "):
        collate(rows, 0)


# Files --------------------------------------------------------------------------------------------


def write_rows(folder: Path, part: dict[str, Any], count: int = 2) -> Path:
    content = [part, {"type": "text", "text": "?"}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "yes"}]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(count)))
    return path


@pytest.mark.parametrize("key", ["path", "url", "image"])
def test_paths_are_told_from_the_files_folder(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pictures").mkdir()
    picture(8, 8).save(tmp_path / "pictures" / "a.png")
    path = write_rows(tmp_path, {"type": "image", key: "pictures/a.png"})
    monkeypatch.chdir(tmp_path.parent)
    backbone = backbone_of("glm4v")
    row = rows_of(backbone, read_examples(path.relative_to(tmp_path.parent)))[0]
    assert row.media is not None and len(row.media.tensors["image_grid_thw"]) == 1


def test_bytes_of_a_table_are_read() -> None:
    buffer = io.BytesIO()
    picture(8, 8).save(buffer, "png")
    backbone = backbone_of("glm4v")
    found = []
    for value in (buffer.getvalue(), {"bytes": buffer.getvalue(), "path": None}, picture(8, 8)):
        turn = {"role": "user", "content": [{"type": "image", "image": value}]}
        [row] = as_examples({"messages": [turn, {"role": "assistant", "content": "a"}]})
        found.append(rows_of(backbone, [row])[0].media)
    assert found[0] == found[1] == found[2]


def test_a_picture_taken_sideways_is_turned(tmp_path: Path) -> None:
    image = picture(8, 4)
    data = image.getexif()
    data[0x0112] = 6  # held to the right
    image.save(tmp_path / "a.png", exif=data)
    turn = {"role": "user", "content": [{"type": "image", "path": str(tmp_path / "a.png")}]}
    [row] = rows_of(backbone_of("qwen3_vl"), [Example((turn,), "a")])
    assert row.media is not None
    assert row.media.tensors["image_grid_thw"].tolist() == [[1, 4, 2]]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"path": "none.png"}, "no such file"),
        ({"path": "text.png"}, "not a readable image"),
        ({"url": "https://example.org/a.png"}, "download it first"),
        ({}, "expected a path or bytes"),
        ({"image": 3}, "expected an image, found int"),
    ],
)
def test_an_image_that_cannot_be_read_names_file_and_line(
    part: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    path = write_rows(tmp_path, {"type": "image", **part})
    with pytest.raises(DataError, match=f"rows.jsonl:1: .*{message}"):
        rows_of(backbone_of("glm4v"), read_examples(path))


def test_a_sound_of_another_rate_is_refused(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav", rate=8000)
    path = write_rows(tmp_path, {"type": "audio", "path": "a.wav"})
    with pytest.raises(DataError, match=r"rows.jsonl:1: .*16000 Hz, found 8000"):
        rows_of(backbone_of("glmasr"), read_examples(path))


def test_every_form_of_a_sound_is_the_same(tmp_path: Path) -> None:
    path = tone(tmp_path / "a.wav")
    samples, rate = soundfile.read(path, dtype="float32")
    soundfile.write(tmp_path / "a.flac", samples, rate)
    stereo = numpy.stack([samples, samples])
    forms = [
        str(path), path.read_bytes(), samples, {"array": samples, "sampling_rate": rate}, stereo,
        str(tmp_path / "a.flac"), (tmp_path / "a.flac").read_bytes(), {"path": str(path)},
    ]  # fmt: skip
    found = []
    for form in forms:
        turn = {"role": "user", "content": [{"type": "audio", "audio": form}]}
        found.append(rows_of(backbone_of("qwen2_audio"), [Example((turn,), "a")])[0].media)
    assert all(media == found[0] for media in found)


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_what_is_no_sound_names_its_row(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"no sound")
    path = write_rows(tmp_path, {"type": "audio", "path": name})
    with pytest.raises(DataError, match="rows.jsonl:1: not a readable sound"):
        rows_of(backbone_of("glmasr"), read_examples(path))


@pytest.mark.parametrize(
    ("module", "family", "name"), [("PIL", "glm4v", "images"), ("soundfile", "glmasr", "audio")]
)
def test_a_missing_package_is_named_with_its_extra(
    module: str, family: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = backbone_of(family)
    kind = "image" if module == "PIL" else "audio"
    (tmp_path / "a").write_bytes(b"anything")
    turn = {"role": "user", "content": [{"type": kind, "path": str(tmp_path / "a")}]}
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DependencyError, match=rf"foreword\[{name}\]"):
        rows_of(backbone, [Example((turn,), "a")])


def test_a_sound_for_a_model_of_images_is_refused(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav")
    path = write_rows(tmp_path, {"type": "audio", "path": "a.wav"})
    with pytest.raises(DataError, match="rows.jsonl:1: expected no sound"):
        rows_of(backbone_of("glm4v"), read_examples(path))


def test_media_without_a_processor_is_refused() -> None:
    model, processor = tiny_processors.shared("glm4v")
    backbone = Backbone(model, processor.tokenizer)
    turn = {"role": "user", "content": [{"type": "image", "image": picture(8, 8)}]}
    with pytest.raises(DataError, match="^here: .*there is no processor"):
        rows_of(backbone, [Example((turn,), "a", "here")])


def test_a_row_template_takes_no_images() -> None:
    backbone = backbone_of("glm4v")
    turn = {"role": "user", "content": [{"type": "image", "image": picture(8, 8)}]}
    config = EncodingConfig(row_template="{prompt}")
    with pytest.raises(DataError, match="^here: .*row-template, found a part of type 'image'"):
        encode_examples(
            [Example((turn,), "a", "here")], backbone.tokenizer, config, 99, backbone.processor
        )


def test_a_row_with_an_image_is_not_cut(tmp_path: Path) -> None:
    backbone = backbone_of("glm4v")
    examples, config = [example_of("glm4v", tmp_path, 1)], EncodingConfig(truncate=True)
    with pytest.raises(DataError, match="row 1: .* is not cut"):
        encode_examples(examples, backbone.tokenizer, config, 10, backbone.processor)


# A checkpoint -------------------------------------------------------------------------------------


def saved(family: str, folder: Path) -> Path:
    """Write a checkpoint as its makers do: model, tokenizer, settings of the processor's parts."""
    tiny_processors.or_skip("AutoImageProcessor")
    model, processor = tiny_processors.shared(family)
    model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    if hasattr(processor, "video_processor"):
        processor.image_processor.save_pretrained(folder)
    else:
        processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["glm4v", "hunyuan_vl", "gemma3", "glmasr"])
def test_a_checkpoint_is_loaded_with_its_processor(family: str, tmp_path: Path) -> None:
    backbone = Backbone.load(str(saved(family, tmp_path)), dtype=torch.float64)
    expected = backbone_of(family)
    assert type(backbone.model) is type(expected.model)
    example = example_of(family, tmp_path, 1)
    ours, theirs = (rows_of(each, [example])[0] for each in (backbone, expected))
    assert ours == theirs
    prompt = prompt_for(expected)
    answers = [
        [answer.text for answer in chat.answers(each, prompt, [example.prompt], max_new_tokens=4)]
        for each in (backbone, expected)
    ]
    assert answers[0] == answers[1]


def test_the_command_line_trains_on_images(tmp_path: Path) -> None:
    model = saved("glm4v", tmp_path / "model")
    picture(8, 8).save(tmp_path / "a.png")
    rows = write_rows(tmp_path, {"type": "image", "path": "a.png"})
    options = {
        "--model": model, "--data": rows, "--output": tmp_path / "out", "--validation": "0",
        "--num-steps": 2, "--batch-size": 2, "--num-virtual-tokens": 4,
    }  # fmt: skip
    words = [str(word) for pair in options.items() for word in pair]
    result = CliRunner().invoke(app, ["train", *words])
    assert result.exit_code == 0, result.output
    assert SoftPrompt.load(tmp_path / "out").num_virtual_tokens == 4
