// Behaviour that Gradio's components lack: image upload, a panel that follows a job, confirmation dialogs.
// Gradio calls each function once for its element (see blocks.py and form.py); `trigger` calls the server.
"use strict";

window.kinema = (() => {
  const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

  // Gradio sets the document's lang to the browser's language; restore the page's.
  const root = document.documentElement;
  const language = root.lang;
  new MutationObserver(() => {
    if (root.lang !== language) root.lang = language;
  }).observe(root, { attributeFilter: ["lang"] });

  // Upload an image that is dropped, pasted or chosen.
  function image(element, trigger, takesPasted) {
    async function upload(file) {
      const frame = element.querySelector(".k-image");
      if (!file) return;
      if (file.size > 20e6) return trigger("rejected", { error: frame.dataset.tooLarge, english: false });
      frame.setAttribute("aria-busy", "true");
      const hint = element.querySelector(".k-hint");
      const before = hint.textContent;
      hint.textContent = frame.dataset.uploading;
      try {
        const response = await fetch(`../images?language=${language}`, { method: "POST", body: file });
        const result = await response.json();
        // Browsers name every pasted image image.png: that is no title.
        if (result.image) trigger("uploaded", { image: result.image, name: file.name === "image.png" ? "" : file.name });
        else if (result.error) {
          trigger("rejected", { error: result.error.message, english: response.headers.get("Content-Language") === "en" });
        }
        else throw new Error(response.statusText);
      } catch {
        trigger("rejected", { error: frame.dataset.unreachable, english: false });
      } finally {
        frame.removeAttribute("aria-busy");
        hint.textContent = before;
      }
    }
    const input = document.createElement("input");
    input.type = "file";
    input.accept = "image/jpeg,image/png,image/webp,image/heic,image/heif,image/avif,.heic,.heif,.hif,.avif";
    input.onchange = () => upload(input.files[0]);
    function choose(camera) {
      input.value = ""; // so that the same file can be chosen again
      input.toggleAttribute("capture", camera);
      input.click();
    }
    const imageFile = (data) => [...data.files].find((file) => file.type.startsWith("image/")) || data.files[0];
    element.addEventListener("click", (event) => {
      if (event.target.closest("[data-choose]")) choose(false);
      else if (event.target.closest("[data-camera]")) choose(true);
      else if (event.target.closest("[data-remove]")) trigger("removed", {});
      else if (event.target.closest("[data-example]")) example(event.target.closest("[data-example]").dataset);
    });
    async function example({ example, title }) {
      const response = await fetch(`../static/examples/${example}.jpg`);
      upload(new File([await response.blob()], `${title}.jpg`, { type: "image/jpeg" }));
    }
    for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
      element.addEventListener(kind, (event) => {
        event.preventDefault();
        element.classList.toggle("k-over", kind === "dragenter" || kind === "dragover");
        if (kind === "drop") upload(imageFile(event.dataTransfer));
      });
    }
    crop(element, trigger);
    document.addEventListener("paste", (event) => {
      if (!takesPasted || element.offsetParent === null || !event.clipboardData?.files.length) return;
      event.preventDefault();
      upload(imageFile(event.clipboardData));
    });
  }

  // Move the crop of the input image by dragging it or with the arrow keys; the server is told when it rests.
  function crop(element, trigger) {
    const steps = { ArrowLeft: -0.02, ArrowUp: -0.02, ArrowRight: 0.02, ArrowDown: 0.02, Home: -1, End: 1 };
    let timer = 0;
    const position = (image) => image.ariaValueNow / 100;
    function move(image, to, delay) {
      const { axis, kept, whole } = image.dataset;
      const at = Math.round(1000 * Math.min(1, Math.max(0, to))) / 1000;
      image.ariaValueNow = 100 * at;
      if (!image.src.endsWith(whole.replace(/^\.\./, ""))) image.src = whole;
      image.style.objectFit = "cover"; // so the browser crops the whole image as the engine will
      image.style.objectPosition = axis === "x" ? `${100 * at}% 0` : `0 ${100 * at}%`;
      const outline = element.querySelector(".k-whole i");
      const [start, end] = axis === "x" ? ["left", "right"] : ["top", "bottom"];
      outline.style[start] = `${100 * at * (1 - kept)}%`;
      outline.style[end] = `${100 * (1 - at) * (1 - kept)}%`;
      clearTimeout(timer);
      timer = setTimeout(() => trigger("moved", { position: at }), delay);
    }
    element.addEventListener("pointerdown", (event) => {
      const image = event.target;
      if (!image.dataset.axis || event.button) return;
      event.preventDefault(); // the browser would drag a copy of the image
      image.focus();
      image.setPointerCapture(event.pointerId);
      const along = (each) => (image.dataset.axis === "x" ? each.clientX : each.clientY);
      const side = image.dataset.axis === "x" ? image.clientWidth : image.clientHeight;
      const hidden = side * (1 / image.dataset.kept - 1); // pixels of the shown image that are cut off
      const from = along(event);
      const before = position(image);
      image.onpointermove = (each) => move(image, before - (along(each) - from) / hidden, 300);
      image.onpointerup = image.onpointercancel = () => (image.onpointermove = image.onpointerup = image.onpointercancel = null);
    });
    element.addEventListener("keydown", (event) => {
      if (!event.target.dataset.axis || !(event.key in steps)) return;
      event.preventDefault();
      move(event.target, position(event.target) + steps[event.key], 300);
    });
  }

  // Send clicks on action buttons to the server; ask before deleting, and for the new title or the seconds to add.
  function actions(element, trigger, confirmation) {
    element.addEventListener("click", async (event) => {
      const button = event.target.closest("[data-act]");
      if (!button) return;
      const { act, job, question, yes, no, title } = button.dataset;
      if (act === "use" || act === "last") showForm();
      if (act === "delete" && (await ask(confirmation, button.textContent)) === null) return;
      if (!question) return trigger("act", { act, job });
      const newTitle = await ask([question, no], yes, title);
      if (newTitle?.trim()) trigger("act", { act, job, title: newTitle });
    });
  }

  // Scroll to the form if its top is outside of the window.
  function showForm() {
    const form = document.querySelector("#k-form");
    const { top } = form.getBoundingClientRect();
    if (top < 0 || top > innerHeight / 2) form.scrollIntoView({ behavior: reducedMotion.matches ? "auto" : "smooth" });
  }

  // The switch of notices. The browser asks for permission when it is turned on.
  function notices(element) {
    const label = element.querySelector("label");
    const input = label.querySelector("input");
    label.hidden = !("Notification" in window) || !isSecureContext || /Android/.test(navigator.userAgent); // needs a service worker
    input.checked = noticesAreOn();
    input.onchange = async () => {
      const allowed = input.checked && (await Notification.requestPermission()) === "granted";
      if (input.checked && !allowed) label.querySelector("span").textContent = label.dataset.blocked;
      input.checked = allowed;
      if (allowed) localStorage.setItem("kinema_notices", "on");
      else localStorage.removeItem("kinema_notices");
    };
  }
  const noticesAreOn = () => localStorage.getItem("kinema_notices") === "on" && window.Notification?.permission === "granted";

  // Notify of each video of the gallery that ends while the page is out of sight.
  function gallery(element, trigger, watch, confirmation) {
    const cards = () => [...element.querySelectorAll(".k-card")];
    const unfinished = () => new Set(cards().filter((card) => !card.dataset.finished).map((card) => card.dataset.id));
    let waiting = unfinished();
    function notify(card) {
      const { state, id } = card.dataset;
      const notice = new Notification(`${state}: ${card.querySelector("h3").textContent}`, { tag: id });
      notice.onclick = () => {
        window.focus();
        trigger("act", { act: "open", job: id });
      };
    }
    watch("value", () => setTimeout(() => {
      for (const card of cards()) {
        if (card.dataset.finished && waiting.has(card.dataset.id) && document.hidden && noticesAreOn()) notify(card);
      }
      waiting = unfinished();
    }));
    actions(element, trigger, confirmation);
  }

  // Show a dialog. Resolves to the typed text ("" for a dialog without a text field), or to null if it is cancelled.
  function ask([question, no], yes, before = null) {
    const dialog = document.createElement("dialog");
    dialog.className = "k-dialog";
    const text = document.createElement(before === null ? "p" : "label");
    text.id = "k-question";
    text.textContent = question;
    dialog.setAttribute("aria-labelledby", text.id);
    const input = document.createElement("input");
    input.id = "k-answer";
    input.value = before ?? "";
    input.maxLength = 200;
    input.onkeydown = (event) => {
      if (event.key !== "Enter" || event.isComposing) return;
      event.preventDefault(); // Enter must not also press the button that regains the focus
      dialog.close("yes");
    };
    if (before !== null) text.htmlFor = input.id;
    const buttons = document.createElement("div");
    buttons.className = "k-actions";
    for (const [value, label] of [["no", no], ["yes", yes]]) {
      const button = document.createElement("button");
      const accent = before === null ? "k-danger" : "k-accent";
      button.className = value === "yes" ? `k-button ${accent}` : "k-button";
      button.textContent = label;
      button.onclick = () => dialog.close(value);
      buttons.append(button);
    }
    dialog.append(text, ...(before === null ? [] : [input]), buttons);
    document.body.append(dialog);
    dialog.showModal();
    if (before !== null) input.select();
    return new Promise((resolve) => {
      dialog.onclose = () => {
        dialog.remove();
        resolve(dialog.returnValue === "yes" ? input.value : null);
      };
    });
  }

  // Follow the panel's job by server-sent events, and name the job in the page's URL.
  function panel(element, trigger, props, watch, confirmation) {
    let source = null;
    let followed = null;
    function follow() {
      const shown = element.querySelector(".k-panel");
      const job = shown?.dataset.job || "";
      if (job !== followed) {
        if (job && followed !== null) element.scrollIntoView({ block: "nearest", behavior: reducedMotion.matches ? "auto" : "smooth" });
        followed = job;
        setJobInUrl(job);
      }
      source?.close();
      source = null;
      play();
      if (job && !shown.dataset.finished) connect(job);
    }
    function connect(job) {
      source = new EventSource(`../jobs/${job}/events?language=${language}`);
      source.onmessage = (event) => {
        const update = JSON.parse(event.data);
        props.value = update.html;
        queueMicrotask(() => queueMicrotask(play));
        if (update.finished) {
          source.close();
          trigger("finished", {});
        }
      };
      source.onerror = () => {
        const line = element.querySelector(".k-left");
        if (line) line.textContent = element.querySelector(".k-panel").dataset.lost;
      };
    }
    function play() {
      const video = element.querySelector("video[data-loop]");
      if (!video || video.dataset.started === video.src) return;
      video.dataset.started = video.src;
      if (!reducedMotion.matches) video.play().catch(() => {});
    }
    actions(element, trigger, confirmation);
    // Browsers limit the connections to one server: a hidden tab closes its own.
    document.addEventListener("visibilitychange", () => (document.hidden ? source?.close() : follow()));
    watch("value", follow);
    follow();
  }

  // Keep the table of workers open or closed when an update replaces it.
  function workers(element, trigger, watch, confirmation) {
    let open = false;
    element.addEventListener("toggle", (event) => (open = event.target.open), true);
    watch("value", () => {
      const wasOpen = open; // before the replaced element's own event
      queueMicrotask(() => queueMicrotask(() => {
        const details = element.querySelector("details");
        if (details) details.open = wasOpen;
      }));
    });
    actions(element, trigger, confirmation);
  }

  // Set the job in the page's URL, so that a reload finds it, and in the links to the other languages.
  function setJobInUrl(job) {
    const url = new URL(location.href);
    if (job) url.searchParams.set("job", job);
    else if (window.kinema.urlIsSet) url.searchParams.delete("job");
    window.kinema.urlIsSet = true;
    history.replaceState(history.state, "", url);
    for (const link of document.querySelectorAll("a[data-language]")) {
      link.href = `../${link.dataset.language}/${url.search}`;
    }
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[data-language]");
    if (!link) return;
    const path = new URL("..", location.href).pathname;
    document.cookie = `kinema_language=${link.dataset.language}; path=${path}; max-age=31536000; samesite=lax`;
  });

  return { image, panel, workers, gallery, notices };
})();
