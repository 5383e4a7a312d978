// SPDX-License-Identifier: Apache-2.0
// The WebSocket: each message gets one answer, in order. It opens when it is first needed, and again after a loss.

const CLOSED = {
  1001: "the server stopped, or closed an idle page",
  1009: "the picture is larger than the server takes",
  1013: "too many pages are open",
};

export class Link {
  constructor({ hello, state }) {
    this.hello = hello;
    this.state = state;
    this.waiting = [];
    this.opening = null;
    this.socket = null;
  }

  // Resolves when the server has said hello and the page has answered it.
  open() {
    if (!this.opening) this.opening = this.connect();
    return this.opening;
  }

  async connect() {
    this.state("connecting");
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/socket`);
    this.socket = socket;
    let refused = "";
    const first = new Promise((resolve, reject) => {
      socket.onmessage = ({ data }) => {
        const answer = JSON.parse(data);
        if (answer.type === "hello") resolve(answer);
        else if (this.waiting.length) this.waiting.shift().resolve(answer);
        else refused = answer.message || "";
      };
      socket.onclose = ({ code }) => {
        const error = new Error(refused || CLOSED[code] || "no connection to the server");
        this.opening = null;
        this.state("off");
        reject(error);
        for (const one of this.waiting.splice(0)) one.reject(error);
      };
    });
    const answer = await first;
    this.state("on");
    await this.hello(answer);
  }

  // The answer to a message: an object for settings, bytes for a picture. Throws what the server says is wrong.
  async ask(message) {
    await this.open();
    return this.send(message);
  }

  async send(message) {
    const answer = await new Promise((resolve, reject) => {
      if (this.socket.readyState !== WebSocket.OPEN) {
        reject(new Error("no connection to the server"));
        return;
      }
      this.waiting.push({ resolve, reject });
      this.socket.send(message instanceof ArrayBuffer ? message : JSON.stringify(message));
    });
    if (answer.type === "error") throw new Error(answer.message);
    return answer;
  }
}
