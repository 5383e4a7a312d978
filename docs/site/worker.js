// SPDX-License-Identifier: Apache-2.0
// Search on pages that are opened from the disk: browsers start no worker there, so that its script runs in a hidden
// frame. The theme looks for the name IFrameWorker, and otherwise uses it as it would use Worker.
if (location.protocol === "file:") {
  class IFrameWorker extends EventTarget {
    constructor(url) {
      super();
      this.onmessage = null;
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.appendChild(this.frame);
      const inner = this.frame.contentWindow;
      addEventListener("message", (event) => {
        if (event.source !== inner) return;
        const copy = new MessageEvent("message", { data: event.data });
        this.dispatchEvent(copy);
        if (this.onmessage) this.onmessage(copy);
      });
      this.ready = new Promise((resolve) => {
        const script = inner.document.createElement("script");
        script.onload = resolve;
        inner.postMessage = (data) => parent_post(inner, data);
        inner.importScripts = (...urls) =>
          Promise.all(
            urls.map(
              (source) =>
                new Promise((done, failed) => {
                  const one = inner.document.createElement("script");
                  one.onload = done;
                  one.onerror = failed;
                  one.src = source;
                  inner.document.body.appendChild(one);
                }),
            ),
          );
        script.src = url;
        inner.document.body.appendChild(script);
      });
    }
    postMessage(data) {
      const inner = this.frame.contentWindow;
      this.ready.then(() => inner.dispatchEvent(new MessageEvent("message", { data })));
    }
    terminate() {
      this.frame.remove();
    }
  }
  // As if the frame had sent it.
  const parent_post = (inner, data) => dispatchEvent(new MessageEvent("message", { data, source: inner }));
  window.IFrameWorker = IFrameWorker;
  window.Worker = IFrameWorker;
}
