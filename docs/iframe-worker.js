// Browsers start no worker for a page that is opened from a folder. There, the worker of the search runs in a hidden
// frame. The name of this file keeps the site generator from loading a script of this purpose from the network.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const scope = this.frame.contentWindow
      // What the worker's code calls on itself.
      scope.postMessage = (data) => setTimeout(() => this.onmessage?.({ data }))
      const script = scope.document.createElement("script")
      script.src = url
      this.ready = new Promise((loaded) => {
        script.onload = loaded
        script.onerror = (event) => this.onerror?.(event)
      })
      scope.document.body.append(script)
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow?.onmessage({ data }))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
