// What Gradio's components can't do by themselves: take an image, follow a job, ask before deleting.
// Each function is called once for its element by Gradio (see blocks.py); `trigger` calls the server.
"use strict";

window.kinema = (() => {
  const calm = matchMedia("(prefers-reduced-motion: reduce)");

  // Gradio calls the document after the browser's language; what stands in it is in the page's own.
  const root = document.documentElement;
  const language = root.lang;
  new MutationObserver(() => {
    if (root.lang !== language) root.lang = language;
  }).observe(root, { attributeFilter: ["lang"] });

  // The image: dropped, pasted or chosen.
  function image(element, trigger) {
    async function take(file) {
      const frame = element.querySelector(".k-image");
      if (!file) return;
      if (file.size > 20e6) return trigger("refused", { fault: frame.dataset.large, english: false });
      frame.setAttribute("aria-busy", "true");
      const hint = element.querySelector(".k-hint");
      hint.textContent = frame.dataset.reading;
      try {
        const answer = await fetch(`../images?language=${language}`, { method: "POST", body: file });
        const told = await answer.json();
        // What is pasted has no name of its own, whatever browsers call it.
        if (told.image) trigger("given", { image: told.image, name: file.name === "image.png" ? "" : file.name });
        else if (told.error) {
          trigger("refused", { fault: told.error.message, english: answer.headers.get("Content-Language") === "en" });
        }
        else throw new Error(answer.statusText);
      } catch {
        trigger("refused", { fault: frame.dataset.unreachable, english: false });
      } finally {
        frame.removeAttribute("aria-busy");
      }
    }
    const input = document.createElement("input");
    input.type = "file";
    input.accept = "image/jpeg,image/png,image/webp";
    input.onchange = () => take(input.files[0]);
    function choose() {
      input.value = ""; // or the same picture could not be chosen twice
      input.click();
    }
    const picture = (data) => [...data.files].find((file) => file.type.startsWith("image/")) || data.files[0];
    element.addEventListener("click", (event) => {
      if (event.target.closest("[data-choose]")) choose();
      else if (event.target.closest("[data-remove]")) trigger("removed", {});
      else if (event.target.closest("[data-example]")) example(event.target.closest("[data-example]").dataset);
    });
    async function example({ example, title }) {
      const answer = await fetch(`../static/examples/${example}.jpg`);
      take(new File([await answer.blob()], `${title}.jpg`, { type: "image/jpeg" }));
    }
    for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
      element.addEventListener(kind, (event) => {
        event.preventDefault();
        element.classList.toggle("k-over", kind === "dragenter" || kind === "dragover");
        if (kind === "drop") take(picture(event.dataTransfer));
      });
    }
    document.addEventListener("paste", (event) => {
      if (element.offsetParent === null || !event.clipboardData?.files.length) return;
      event.preventDefault();
      take(picture(event.clipboardData));
    });
  }

  // Buttons within an element call the server by name; deleting is asked about first.
  function acting(element, trigger, sure) {
    element.addEventListener("click", async (event) => {
      const button = event.target.closest("[data-act]");
      if (!button) return;
      const { act, job, ask, yes, no, title } = button.dataset;
      if (act === "delete" && (await asked(sure, button.textContent)) === null) return;
      if (act !== "rename") return trigger("act", { act, job });
      const given = await asked([ask, no], yes, title);
      if (given?.trim()) trigger("act", { act, job, title: given });
    });
  }

  // What was typed into a dialog, "" where nothing is asked to be typed; null where it was declined.
  function asked([question, keep], yes, before = null) {
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
      event.preventDefault(); // or the button that has the focus again would be pressed by it
      dialog.close("yes");
    };
    if (before !== null) text.htmlFor = input.id;
    const actions = document.createElement("div");
    actions.className = "k-actions";
    for (const [value, label] of [["no", keep], ["yes", yes]]) {
      const button = document.createElement("button");
      const accent = before === null ? "k-danger" : "k-accent";
      button.className = value === "yes" ? `k-button ${accent}` : "k-button";
      button.textContent = label;
      button.onclick = () => dialog.close(value);
      actions.append(button);
    }
    dialog.append(text, ...(before === null ? [] : [input]), actions);
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

  // The panel follows its job by server-sent events, and the address names it.
  function panel(element, trigger, props, watch, sure) {
    let source = null;
    let followed = null;
    function follow() {
      const shown = element.querySelector(".k-panel");
      const job = shown?.dataset.job || "";
      if (job !== followed) {
        if (job && followed !== null) element.scrollIntoView({ block: "nearest", behavior: calm.matches ? "auto" : "smooth" });
        followed = job;
        name(job);
      }
      source?.close();
      source = null;
      play();
      if (job && !shown.dataset.finished) connect(job);
    }
    function connect(job) {
      source = new EventSource(`../jobs/${job}/events?language=${language}`);
      source.onmessage = (event) => {
        const told = JSON.parse(event.data);
        props.value = told.html;
        queueMicrotask(() => queueMicrotask(play));
        if (told.finished) {
          source.close();
          trigger("finished", {});
        }
      };
      source.onerror = () => {
        const left = element.querySelector(".k-left");
        if (left) left.textContent = element.querySelector(".k-panel").dataset.lost;
      };
    }
    function play() {
      const video = element.querySelector("video[data-loop]");
      if (!video || video.dataset.begun === video.src) return;
      video.dataset.begun = video.src;
      if (!calm.matches) video.play().catch(() => {});
    }
    acting(element, trigger, sure);
    // A browser keeps few connections to one server: a tab that no one sees gives its own back.
    document.addEventListener("visibilitychange", () => (document.hidden ? source?.close() : follow()));
    watch("value", follow);
    follow();
  }

  // The job in the address and in the links to the other language, so that a reload finds it.
  function name(job) {
    const address = new URL(location.href);
    if (job) address.searchParams.set("job", job);
    else if (window.kinema.named) address.searchParams.delete("job");
    window.kinema.named = true;
    history.replaceState(history.state, "", address);
    for (const link of document.querySelectorAll("a[data-language]")) {
      link.href = `../${link.dataset.language}/${address.search}`;
    }
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[data-language]");
    if (!link) return;
    const path = new URL("..", location.href).pathname;
    document.cookie = `kinema_language=${link.dataset.language}; path=${path}; max-age=31536000; samesite=lax`;
  });

  return { image, panel, acting };
})();
