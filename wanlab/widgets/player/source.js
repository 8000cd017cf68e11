/**
 * The video (or picture) that all panes draw from.
 *
 * Each new frame is copied once into `sheet`, and its number is read from the blocks that the kernel drew into it. Panes,
 * numbers and pixel values all come from that one copy, so none can be a frame ahead, however late a callback is.
 */
class Source {
  constructor({ facts, bytes, onFrame, onState }) {
    this.facts = facts;
    this.onFrame = onFrame;
    this.onState = onState;
    this.frame = -1;
    this.wanted = null;
    this.loop = true;
    this.sheet = document.createElement("canvas");
    this.ink = this.sheet.getContext("2d", { willReadFrequently: true });
    this.url = URL.createObjectURL(new Blob([bytes], { type: facts.mime }));
    this.isVideo = facts.mime.startsWith("video/");
    this.element = this.isVideo ? this.#video() : this.#image();
  }

  get last() {
    return this.facts.numFrames - 1;
  }

  get playing() {
    return this.isVideo && !this.element.paused && !this.element.ended;
  }

  #image() {
    const image = new Image();
    image.onload = () => this.#copy(image.naturalWidth, image.naturalHeight);
    image.src = this.url;
    return image;
  }

  #video() {
    const video = document.createElement("video");
    Object.assign(video, { muted: true, playsInline: true, preload: "auto", loop: true, tabIndex: -1 });
    video.className = "wl-source";
    video.setAttribute("aria-hidden", "true");
    video.addEventListener("loadeddata", () => this.seek(0), { once: true });
    video.addEventListener("seeked", () => this.#afterSeek());
    for (const name of ["play", "pause", "ended", "ratechange"]) video.addEventListener(name, () => this.onState());
    video.addEventListener("error", () => this.onState("This browser cannot play H.264."));
    if (video.requestVideoFrameCallback) {
      const next = () => {
        this.#copyVideo();
        video.requestVideoFrameCallback(next);
      };
      video.requestVideoFrameCallback(next);
    } else {
      const next = () => {
        if (this.playing) this.#copyVideo();
        this.request = requestAnimationFrame(next);
      };
      this.request = requestAnimationFrame(next);
    }
    video.src = this.url;
    return video;
  }

  #copyVideo() {
    if (this.element.readyState >= 2) this.#copy(this.element.videoWidth, this.element.videoHeight);
  }

  #copy(width, height) {
    if (this.sheet.width !== width || this.sheet.height !== height) Object.assign(this.sheet, { width, height });
    this.ink.drawImage(this.element, 0, 0);
    this.frame = this.#number();
    this.onFrame();
  }

  /** The frame's number: a block a bit, the highest first. */
  #number() {
    const [left, top, width, height] = this.facts.code;
    const row = this.ink.getImageData(left, top + height / 2, width, 1).data;
    let number = 0;
    for (let x = height / 2; x < width; x += height) number = 2 * number + (row[4 * x + 1] > 127 ? 1 : 0);
    return Math.min(number, this.last);
  }

  /** Show a frame: the middle of its time, so that no rounding shows a neighbour. The latest wish wins. */
  seek(frame) {
    if (!this.isVideo) return;
    this.wanted = Math.min(Math.max(Math.round(frame), 0), this.last);
    if (!this.element.seeking) this.#go();
  }

  #go() {
    this.going = this.wanted;
    this.element.currentTime = (this.going + 0.5) / this.facts.fps;
  }

  #afterSeek() {
    if (this.wanted !== null && this.wanted !== this.going) return this.#go();
    this.wanted = null;
    this.#copyVideo();
  }

  async play() {
    if (!this.isVideo) return;
    this.element.loop = this.loop;
    if (this.frame === this.last) this.seek(0);
    try {
      await this.element.play();
    } catch (error) {
      if (error.name !== "AbortError") this.onState(`The video does not play: ${error.message}`);
    }
  }

  /** Stop, and stay at the frame that is on the screen: the video itself may be a little further. */
  pause() {
    if (!this.isVideo) return;
    this.element.pause();
    this.seek(this.frame);
  }

  setLoop(loop) {
    this.loop = loop;
    if (this.isVideo) this.element.loop = loop;
  }

  setSpeed(speed) {
    if (this.isVideo) Object.assign(this.element, { defaultPlaybackRate: speed, playbackRate: speed });
  }

  /** RGB of a clip at (x, y) from 0 to 1, from the middle of that pixel; through H.264, so about right. */
  pixel(clip, x, y) {
    const [left, top, width, height] = clip.cell;
    const column = Math.min(Math.floor(x * clip.width), clip.width - 1);
    const row = Math.min(Math.floor(y * clip.height), clip.height - 1);
    const atX = left + Math.floor(((column + 0.5) * width) / clip.width);
    const atY = top + Math.floor(((row + 0.5) * height) / clip.height);
    return [...this.ink.getImageData(atX, atY, 1, 1).data.slice(0, 3)];
  }

  close() {
    cancelAnimationFrame(this.request);
    if (this.isVideo) {
      this.element.pause();
      this.element.removeAttribute("src");
      this.element.load();
    }
    URL.revokeObjectURL(this.url);
  }
}
