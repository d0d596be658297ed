// Asks the bare model and a soft prompt at once, and shows both answers as they stream.
"use strict";

const at = (id) => document.getElementById(id);
let base = null;
let stopping = null;

function headers() {
  const found = { "content-type": "application/json" };
  if (at("key").value) found.authorization = "Bearer " + at("key").value;
  return found;
}

function fail(message) {
  at("error").textContent = message;
  at("error").hidden = !message;
}

async function reason(response) {
  try { return (await response.json()).error.message; } catch { return "HTTP " + response.status; }
}

// What a prompt measured on rows that it was not trained on: numbers only, the rest says nothing.
function metricsOf(prompt) {
  const held = (prompt.metrics && prompt.metrics.validation) || {};
  return Object.entries(held).filter(([, value]) => typeof value === "number")
    .map(([name, value]) => name + " " + value.toPrecision(3)).join(", ");
}

// A prompt's training as a picture: its loss over the steps, and that of the rows held out.
function curve(history) {
  const [width, height, edge] = [180, 48, 4];
  const held = history.validation || { step: [], loss: [] };
  const losses = [...history.loss, ...held.loss];
  const low = Math.min(...losses);
  const range = Math.max(...losses) - low || 1;
  const last = Math.max(...history.step, ...held.step);
  const points = (steps, values) => steps.map((step, index) => [
    edge + (last > 1 ? (step - 1) / (last - 1) : 0) * (width - 2 * edge),
    height - edge - ((values[index] - low) / range) * (height - 2 * edge),
  ].map((number) => number.toFixed(1)));
  const told = (values) => [values[0], values[values.length - 1]].map((one) => one.toPrecision(3)).join(" to ");
  const found = at("curve").content.cloneNode(true);
  const said = ["loss " + told(history.loss) + " in " + last + " steps"];
  if (held.loss.length) said.push("held out " + told(held.loss));
  found.querySelector("title").textContent = said.join(", ");
  found.querySelectorAll(".said").forEach((place, index) => { place.textContent = said[index] || ""; });
  const judged = points(held.step, held.loss);
  found.querySelector("polyline.trained").setAttribute("points", points(history.step, history.loss).join(" "));
  found.querySelector("polyline.judged").setAttribute("points", judged.join(" "));
  const dot = found.querySelector("circle");
  dot.replaceWith(...judged.map(([x, y]) => {
    const one = dot.cloneNode();
    one.setAttribute("cx", x);
    one.setAttribute("cy", y);
    return one;
  }));
  return found;
}

function row(card) {
  const prompt = card.soft_prompt;
  const cells = [card.id, prompt.version, card.parent, prompt.form, prompt.virtual_tokens,
    (prompt.num_bytes / 1e6).toFixed(2) + " MB", metricsOf(prompt)];
  const line = document.createElement("tr");
  for (const cell of cells) line.appendChild(document.createElement("td")).textContent = cell;
  line.appendChild(document.createElement("td")).append(prompt.history ? curve(prompt.history) : "no history");
  const names = document.querySelectorAll("th");
  line.childNodes.forEach((cell, index) => { cell.dataset.name = names[index].textContent; });
  return line;
}

async function list() {
  const response = await fetch("/v1/models", { headers: headers() });
  if (!response.ok) return fail(await reason(response));
  fail("");
  const cards = (await response.json()).data;
  base = cards.find((card) => card.parent === null);
  const prompts = cards.filter((card) => card.parent !== null);
  const chosen = at("prompt").value;
  at("prompt").replaceChildren(...prompts.map((card) => new Option(card.id)));
  if (prompts.some((card) => card.id === chosen)) at("prompt").value = chosen;
  at("prompts").replaceChildren(...prompts.map(row));
  at("bare").querySelector("h2").textContent = base.id;
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) if (part !== "data: [DONE]") yield JSON.parse(part.slice(6));
  }
}

async function answer(place, model, signal) {
  const text = at(place).querySelector(".answer");
  const figures = at(place).querySelector(".figures");
  text.textContent = figures.textContent = "";
  const started = performance.now();
  let first = null;
  let count = 0;
  const show = () => {
    const seconds = (performance.now() - first) / 1000;
    figures.textContent = "first token " + ((first - started) / 1000).toFixed(2) + " s · " +
      count + " tokens" + (count > 1 ? " · " + ((count - 1) / seconds).toFixed(1) + " tokens/s" : "");
  };
  const response = await fetch("/v1/chat/completions", {
    method: "POST", headers: headers(), signal,
    body: JSON.stringify({
      model, messages: [{ role: "user", content: at("text").value }], stream: true,
      stream_options: { include_usage: true }, max_tokens: Number(at("tokens").value),
      temperature: Number(at("temperature").value),
    }),
  });
  if (!response.ok) throw new Error(await reason(response));
  for await (const event of events(response.body)) {
    if (event.error) throw new Error(event.error.message);
    if (event.usage) { count = event.usage.completion_tokens; if (first !== null) show(); }
    const piece = event.choices && event.choices[0] && event.choices[0].delta.content;
    if (!piece) continue;
    first = first === null ? performance.now() : first;
    count += 1;
    text.textContent += piece;
    show();
  }
}

at("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  fail("");
  stopping = new AbortController();
  at("send").disabled = true;
  at("stop").disabled = false;
  at("soft").querySelector("h2").textContent = at("prompt").value;
  try {
    if (base === null) await list();
    await Promise.all([
      answer("bare", base.id, stopping.signal),
      answer("soft", at("prompt").value, stopping.signal),
    ]);
  } catch (error) {
    if (error.name !== "AbortError") fail(error.message);
    stopping.abort();
  } finally {
    at("send").disabled = false;
    at("stop").disabled = true;
  }
});
at("stop").addEventListener("click", () => stopping && stopping.abort());
at("key").addEventListener("change", list);
list().catch((error) => fail(error.message));
