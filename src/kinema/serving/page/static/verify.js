// The page at /studio/verify: sends a file to the server and shows the answer. All text is set as text, never as HTML.
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

function show(kind, title, rows = [], language = document.documentElement.lang) {
  const list = document.createElement("dl");
  list.lang = language;
  for (const [name, value] of rows) {
    const shown = element("dd", "");
    shown.append(value);
    list.append(element("dt", name), shown);
  }
  result.className = kind;
  result.replaceChildren(element("h2", title), list);
}

function watermarkText(found) {
  const watermark = found.watermark;
  if (found.frames_read === 0) return words.watermark_unread;
  if (watermark === null) return filled("watermark_none", { frames: found.frames_read });
  const text = filled("watermark_found", { payload: watermark.payload });
  if (watermark.matches_recipe === null) return text;
  return `${text}, ${watermark.matches_recipe ? words.watermark_matches : words.watermark_differs}`;
}

// What the credentials say, which can be relied on only if nothing was changed.
function claimRows(credentials) {
  if (!["trusted", "valid"].includes(credentials.state)) return [];
  const sources = credentials.source_types.map((name) => words[`source_${name}`] ?? filled("source_other", { name }));
  const rows = [[words.claims, [...new Set(sources)].join(", ") || words.source_none]];
  if (credentials.generator) rows.push([words.generator, credentials.generator]);
  if (credentials.signed_at) rows.push([words.signed_at, credentials.signed_at]);
  for (const image of credentials.ingredients) {
    rows.push([words.images, `${image.title || "?"}: ${words[`image_${image.credentials}`]}`]);
  }
  return rows;
}

function recipeOf(found) {
  if (found.recipe === null) return words.recipe_none;
  if (found.verdict === "tampered") return words.recipe_unreliable;
  const details = document.createElement("details");
  const signed = found.recipe_is_signed ? words.recipe_signed : words.recipe_unsigned;
  details.append(element("summary", signed), element("pre", JSON.stringify(found.recipe, null, 2)));
  return details;
}

function rowsOf(found) {
  const credentials = found.credentials;
  const values = { signer: credentials.signer || "?", fault: words[`fault_${credentials.fault}`] };
  const rows = [[words.credentials, filled(`credentials_${credentials.state}`, values)], ...claimRows(credentials)];
  rows.push([words.watermark, watermarkText(found)]);
  if (found.job) rows.push([words.job, filled(found.job_exists ? "job_here" : "job_gone", { job: found.job })]);
  rows.push([words.recipe, recipeOf(found)]);
  return rows;
}

async function verify(files) {
  if (files.length === 0) return;
  const [sidecar, ...sidecars] = files.filter((file) => file.name.endsWith(".c2pa"));
  const [video, ...videos] = files.filter((file) => !file.name.endsWith(".c2pa"));
  if (!video || videos.length > 0 || sidecars.length > 0) {
    return show("failed", words.failed, [[files.map((file) => file.name).join(", "), words.one_video]]);
  }
  const body = new FormData();
  body.append("file", video);
  if (sidecar) body.append("sidecar", sidecar);
  show("working", words.working);
  try {
    const language = document.documentElement.lang;
    const response = await fetch(`verify?language=${language}`, { method: "POST", body });
    const found = await response.json();
    if (!response.ok) {
      const text = words[found.error.code] ?? found.error.message;
      return show("failed", words.failed, [[video.name, text]], response.headers.get("Content-Language") ?? "en");
    }
    const verdict = found.verdict === "authentic" && !found.credentials.generated ? "signed" : found.verdict;
    show(found.verdict, words[verdict], [[video.name, `${video.size} B`], ...rowsOf(found)]);
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
