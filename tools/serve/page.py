"""The page that takes pictures and shows what the model says of them. It loads nothing from elsewhere."""

from base64 import b64encode
from hashlib import sha256
from html import escape

from stages.base.text import harmless
from tools.model import Model

STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 44em; margin: 2em auto; padding: 0 1em; color: #222 }
h1 { font-size: 1.3em } #drop { display: block; border: 2px dashed #999; border-radius: .5em; padding: 2.5em 1em;
  text-align: center; cursor: pointer } #drop.over { border-color: #2166ac; background: #eef4fa }
#drop:focus-within { outline: 2px solid #2166ac } input { position: absolute; opacity: 0; width: 1px }
article { display: flex; gap: 1.2em; margin: 1.2em 0; align-items: flex-start }
article img { width: 128px; height: 128px; object-fit: contain; background: #eee; image-rendering: pixelated }
article div { flex: 1; overflow-wrap: anywhere } table { width: 100%; border-collapse: collapse }
td { padding: .1em .6em .1em 0; font-variant-numeric: tabular-nums } td:last-child { width: 50%; padding: 0 }
meter { width: 100%; height: .9em } small { color: #666 } .error { color: #b2182b }
"""
SCRIPT = """
const drop = document.getElementById("drop"), input = document.querySelector("input"), most = 5
const shown = document.getElementById("answers"), say = text => document.getElementById("status").textContent = text
function element(name, text, parent) {
  const made = document.createElement(name)
  made.textContent = text
  return parent.appendChild(made)
}
function show(file, answer) {
  const article = document.createElement("article"), picture = element("img", "", article)
  picture.src = URL.createObjectURL(file)
  picture.alt = file.name
  picture.onerror = () => { picture.removeAttribute("src"); picture.alt = "" }
  const text = element("div", "", article)
  element("strong", answer.class ?? "", text)
  element("small", " " + file.name, text)
  if (answer.error) element("p", answer.error, text).className = "error"
  const table = element("table", "", text)
  for (const [name, share] of Object.entries(answer.probabilities ?? {}).sort((a, b) => b[1] - a[1]).slice(0, most)) {
    const row = table.insertRow()
    row.insertCell().textContent = name
    row.insertCell().textContent = share.toFixed(3)
    element("meter", "", row.insertCell()).value = share
  }
  shown.prepend(article)
}
async function send(files) {
  say("…")
  for (const file of files) {
    const form = new FormData()
    form.append("image", file)
    try {
      const response = await fetch("predict", {method: "POST", body: form}), found = await response.json()
      show(file, found.predictions ? found.predictions[0] : {error: found.message})
    } catch (error) {
      show(file, {error: "no answer from the server: " + error.message})
    }
  }
  say("")
  input.value = ""
}
input.onchange = () => send([...input.files])
for (const kind of ["dragenter", "dragover", "dragleave", "drop"])
  document.addEventListener(kind, event => {
    event.preventDefault()
    drop.classList.toggle("over", kind === "dragenter" || kind === "dragover")
    if (kind === "drop") send([...event.dataTransfer.files])
  })
document.addEventListener("paste", event => send([...event.clipboardData.files]))
"""


def _source(content: str) -> str:
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"


# Only what stands here may run, and only this server may be asked.
CONTENT_POLICY = (
    f"default-src 'none'; script-src {_source(SCRIPT)}; style-src {_source(STYLE)}; img-src blob:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page(model: Model) -> str:
    """Return the page for a model."""
    name, classes = escape(harmless(model.called)), escape(harmless(", ".join(model.classes)))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{name}</title><style>{STYLE}</style>"
        f"<h1>{name}</h1><label id=drop>Drop pictures here, paste them, or click to choose some"
        f"<input type=file accept=image/* multiple aria-label=pictures></label><p id=status role=status></p>"
        f"<section id=answers aria-live=polite></section><p><small>{len(model.classes)} classes: {classes}</small></p>"
        f"<script>{SCRIPT}</script></html>"
    )
