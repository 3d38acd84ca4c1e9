"""The page at `/`: a prompt is typed, and the picture comes."""

from __future__ import annotations

import html

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>rfc-fx: {model}</title>
<style>
 body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 42rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
 form {{ display: flex; gap: .5rem; flex-wrap: wrap }}
 input {{ font: inherit; padding: .4rem .6rem; border: 1px solid #888; border-radius: 4px }}
 #what {{ flex: 1 1 20rem }} #seed {{ width: 7rem }}
 button {{ font: inherit; padding: .4rem 1rem; border: 0; border-radius: 4px; background: #1f4fd8; color: #fff }}
 button:disabled {{ background: #999 }}
 #state {{ min-height: 1.5rem; color: #555 }} #state.bad {{ color: #b00020 }}
 img {{ max-width: 100%; min-width: 256px; image-rendering: auto; border: 1px solid #ddd; border-radius: 4px }}
</style></head><body>
<h1>{model}</h1>
<form id="form"><input id="what" required maxlength="4000" placeholder="{hint}" aria-label="{hint}" autofocus>
<input id="seed" type="number" min="0" placeholder="seed" aria-label="seed"><button id="draw">Draw</button></form>
<p id="state" role="status"></p><div id="pictures"></div>
<script>
const by = id => document.getElementById(id)
const say = (text, bad) => {{ by("state").textContent = text; by("state").className = bad ? "bad" : "" }}
by("form").onsubmit = async event => {{
  event.preventDefault(); by("draw").disabled = true; say("queued")
  const body = {{ [{field}]: {convert}(by("what").value), stream: true }}
  if (by("seed").value) body.seed = Number(by("seed").value)
  const headers = {{ "Content-Type": "application/json" }}
  const token = new URLSearchParams(location.hash.slice(1)).get("token"); if (token) headers.Authorization = "Bearer " + token
  try {{
    const answer = await fetch("v1/images/generations", {{ method: "POST", headers, body: JSON.stringify(body) }})
    if (!answer.ok) throw new Error((await answer.json()).error.message)
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader()
    for (let text = "";;) {{
      const {{ value, done }} = await reader.read(); if (done) break
      text += value
      for (let end; (end = text.indexOf("\\n\\n")) >= 0; text = text.slice(end + 2)) handle(text.slice(0, end))
    }}
  }} catch (error) {{ say(error.message, true) }}
  by("draw").disabled = false
}}
function handle(event) {{
  const [, name, data] = event.match(/^event: (\\w+)\\ndata: (.*)$/s); const said = JSON.parse(data)
  if (name === "progress") say(`drawing, ${{said.seconds}} s, ${{said.waiting}} waiting`)
  if (name === "error") say(said.error.message, true)
  if (name === "done") {{
    for (const one of said.data) {{
      const picture = new Image(); picture.src = "data:image/png;base64," + one.b64_json; picture.alt = by("what").value
      by("pictures").prepend(picture)
      say(`seed ${{one.seed}}; ${{one.nfc}} of ${{one.steps}} steps in full`)
    }}
  }}
}}
</script></body></html>
"""


def page(model: str, takes_classes: bool) -> str:
    """The page of a model that takes prompts, or numbers of classes."""
    hint = "the number of a class" if takes_classes else "what the picture shows"
    field, convert = ('"class"', "Number") if takes_classes else ('"prompt"', "String")
    return TEMPLATE.format(model=html.escape(model), hint=hint, field=field, convert=convert)
