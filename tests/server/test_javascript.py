"""OpenAI's JavaScript client against the service; needs Node, and npm's registry once."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = """
import OpenAI, { toFile } from "openai";
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "any", maxRetries: 0 });
const models = [];
for await (const model of client.models.list()) models.push(model.id);
const extra = { prompt: "a red cat", num_inference_steps: 3, seed: 7 };
const drawn = await client.images.generate(extra);
const kinds = [];
let last;
const streamed = { ...extra, stream: true, partial_images: 1 };
for await (const event of await client.images.generate(streamed)) {
  kinds.push(event.type);
  last = event;
}
const vectors = await client.embeddings.create({ model: "seer", input: ["a cat", "a dog"] });
const file = await toFile(Buffer.from(drawn.data[0].b64_json, "base64"), "a.png");
const edited = await client.images.edit({ image: file, prompt: "a dog", num_inference_steps: 2 });
const varied = await client.images.createVariation({ image: file, num_inference_steps: 2 });
let missing = "";
try {
  await client.images.generate({ prompt: "a", model: "none" });
} catch (error) {
  missing = error.constructor.name;
}
let refused = "";
try {
  await client.images.generate({ prompt: "a", n: 11 });
} catch (error) {
  refused = error.constructor.name;
}
console.log(JSON.stringify({
  models, kinds, missing, pictures: edited.data.length + varied.data.length,
  same: last.b64_json === drawn.data[0].b64_json, refused,
  width: vectors.data[0].embedding.length, count: vectors.data.length,
}));
"""


@pytest.mark.slow
def test_the_calls_of_the_javascript_client(served, tmp_path: Path) -> None:
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("Node is not installed")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "calls.js").write_text(SCRIPT)
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "openai@7.59.0"], cwd=tmp_path, check=True
    )
    done = subprocess.run(
        ["node", "calls.js", f"{served.url}/v1"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["models"] == ["painter", "seer", "digits-vae"] and found["same"]
    assert found["kinds"][-1] == "image_generation.completed"
    assert found["missing"] == "NotFoundError" and found["pictures"] == 2
    assert found["refused"] == "BadRequestError" and (found["width"], found["count"]) == (16, 2)
