// SPDX-License-Identifier: Apache-2.0
// Search on pages that are opened from the disk: browsers start no worker there, so that its script runs in a hidden
// frame. The theme looks for the name IFrameWorker, and otherwise uses it as it would use Worker.
if (location.protocol === "file:") {
  // A script in a document; the promise is kept when it has run.
  const loaded = (document, url) =>
    new Promise((done, failed) => {
      const script = document.createElement("script");
      script.onload = done;
      script.onerror = failed;
      script.src = url;
      document.body.appendChild(script);
    });

  class IFrameWorker extends EventTarget {
    constructor(url) {
      super();
      this.onmessage = null;
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc = "<!doctype html>";
      this.ready = new Promise((done) => (this.frame.onload = done)).then(() => {
        const inner = this.frame.contentWindow;
        inner.postMessage = (data) => this.answer(data);
        inner.importScripts = (...urls) => Promise.all(urls.map((one) => loaded(inner.document, one)));
        return loaded(inner.document, url);
      });
      document.body.appendChild(this.frame);
    }
    answer(data) {
      const event = new MessageEvent("message", { data });
      this.dispatchEvent(event);
      if (this.onmessage) this.onmessage(event);
    }
    postMessage(data) {
      const event = new MessageEvent("message", { data });
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(event));
    }
    terminate() {
      this.frame.remove();
    }
  }
  window.IFrameWorker = IFrameWorker;
  window.Worker = IFrameWorker;
}
