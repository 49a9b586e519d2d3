// Browsers start no workers for pages opened from a folder, so the search runs in a hidden frame there.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.documentElement.append(this.frame);
      const scope = this.frame.contentWindow;
      scope.postMessage = (data) => this.deliver(data, (copy) => this.onmessage?.({ data: copy }));
      const script = scope.document.createElement("script");
      script.src = new URL(url, location).href;
      this.loaded = new Promise((resolve) => { script.onload = resolve; });
      script.onerror = (event) => this.onerror?.(event);
      scope.document.documentElement.append(script);
    }

    postMessage(data) {
      const scope = this.frame.contentWindow;
      const send = (copy) => scope.dispatchEvent(new scope.MessageEvent("message", { data: copy }));
      this.loaded.then(() => this.deliver(data, send));
    }

    // A worker receives a copy, later.
    deliver(data, receive) {
      const copy = structuredClone(data);
      setTimeout(() => receive(copy));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
