/** Says once why clips do not play: the page was moved alone, or a server shows it in a sandbox, without its login. */
function tellMissing() {
  const clips = [...document.querySelectorAll("article > video, article > img")];
  const note = element("p", { class: "error", role: "status", hidden: true });
  document.querySelector("header").append(note);
  const look = () => {
    const missing = clips.filter((clip) => (clip.localName === "video" ? clip.error : clip.complete && !clip.naturalWidth)).length;
    if (!missing) return;
    note.hidden = false;
    note.textContent =
      `${missing} of ${clips.length} clips cannot be loaded. ` +
      (location.protocol === "file:"
        ? "The page finds them from where it was written: move it together with the folders of the runs."
        : "Jupyter shows pages in a sandbox that has no access to other files: open the page from disk instead.");
  };
  for (const clip of clips) clip.addEventListener("error", look);
  look();
}

const draw = startPlot();
startTicks();
startTable(() => DATA.plot && draw());
tellMissing();
