// The page at /studio/verify: sends a file to /v1/verify and shows the answer. All text is set as text, never as HTML.
"use strict";

const words = JSON.parse(document.body.dataset.words);
const form = document.getElementById("drop");
const input = document.getElementById("file");
const result = document.getElementById("result");

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function filled(name, values) {
  return words[name].replace(/\{(\w+)\}/g, (_, key) => String(values[key]));
}

function show(kind, title, rows = [], recipe = null) {
  const list = document.createElement("dl");
  for (const [name, value] of rows) list.append(element("dt", name), element("dd", value));
  result.className = kind;
  result.replaceChildren(element("h2", title), list);
  if (recipe !== null) {
    const details = document.createElement("details");
    details.append(element("summary", words.recipe), element("pre", JSON.stringify(recipe, null, 2)));
    result.append(details);
  }
}

function watermarkText(found) {
  const watermark = found.watermark;
  if (watermark === null) return filled("watermark_none", { frames: found.frames_read });
  const text = filled("watermark_found", { payload: watermark.payload });
  if (watermark.matches_recipe === null) return text;
  return `${text}, ${watermark.matches_recipe ? words.watermark_matches : words.watermark_differs}`;
}

function rowsOf(found) {
  const credentials = found.credentials;
  const rows = [[words.credentials, filled(`credentials_${credentials.state}`, { signer: credentials.signer || "?" })]];
  if (credentials.generator) rows.push([words.generator, credentials.generator]);
  if (credentials.signed_at) rows.push([words.signed_at, credentials.signed_at]);
  for (const image of credentials.ingredients) {
    rows.push([words.images, `${image.title || "?"}: ${words[`image_${image.credentials}`]}`]);
  }
  rows.push([words.watermark, watermarkText(found)]);
  if (found.job) rows.push([words.job, filled(found.job_exists ? "job_here" : "job_gone", { job: found.job })]);
  const recipe = found.recipe === null ? "recipe_none" : found.recipe_is_signed ? "recipe_signed" : "recipe_unsigned";
  rows.push([words.recipe, words[recipe]]);
  return rows;
}

async function verify(files) {
  const sidecar = files.find((file) => file.name.endsWith(".c2pa"));
  const video = files.find((file) => file !== sidecar);
  if (!video) return;
  const body = new FormData();
  body.append("file", video);
  if (sidecar) body.append("sidecar", sidecar);
  show("working", words.working);
  try {
    const response = await fetch("../v1/verify", { method: "POST", body });
    const found = await response.json();
    if (!response.ok) {
      return show("failed", words.failed, [[video.name, words[found.error.code] ?? found.error.message]]);
    }
    const verdict = found.verdict === "authentic" && !found.credentials.generated ? "signed" : found.verdict;
    show(found.verdict, words[verdict], [[video.name, `${video.size} B`], ...rowsOf(found)], found.recipe);
  } catch {
    show("failed", words.offline);
  }
}

input.addEventListener("change", () => verify([...input.files]));
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    form.classList.toggle("over", name === "dragover");
    if (name === "drop") verify([...event.dataTransfer.files]);
  });
}
