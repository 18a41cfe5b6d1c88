// Shows one photo and one caption, taken apart, in a container: point at a word and the photo changes, point at the photo
// and the words' weights show. data: what pipeline.draw_explanation.attention_data makes; photo: its address.
function showAttention(container, data, photo, alt) {
  const make = (tag, properties = {}) => Object.assign(document.createElement(tag), properties);
  const words = make("div", { className: "words" }), note = make("p", { className: "note faint" }), stage = make("div", { className: "stage" });
  note.setAttribute("aria-live", "polite");
  stage.style.setProperty("--width", data.width);
  const canvas = make("canvas"), svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${data.width} ${data.height}`); svg.setAttribute("preserveAspectRatio", "none"); svg.setAttribute("role", "presentation");
  stage.append(make("img", { src: photo, alt }), canvas, svg);
  container.replaceChildren(words, note, stage);
  const scale = 192 / Math.max(data.width, data.height);
  canvas.width = Math.max(1, Math.round(data.width * scale)); canvas.height = Math.max(1, Math.round(data.height * scale));
  const context = canvas.getContext("2d");

  // Attention of each pixel: the mean over the regions that cover it, stretched to the range that the photo has.
  function dim(weights) {
    const total = new Float32Array(canvas.width * canvas.height), count = new Float32Array(total.length);
    data.boxes.forEach(([x1, y1, x2, y2], region) => {
      for (let y = Math.round(y1 * scale); y < Math.min(canvas.height, Math.round(y2 * scale)); y++)
        for (let x = Math.round(x1 * scale); x < Math.min(canvas.width, Math.round(x2 * scale)); x++) {
          total[y * canvas.width + x] += weights[region]; count[y * canvas.width + x] += 1;
        }
    });
    let low = Infinity, high = -Infinity;
    total.forEach((value, index) => { if (count[index]) { total[index] = value / count[index]; low = Math.min(low, total[index]); high = Math.max(high, total[index]); } });
    const picture = context.createImageData(canvas.width, canvas.height), range = Math.max(high - low, 1e-12);
    total.forEach((value, index) => { picture.data[4 * index + 3] = 255 * 0.78 * (1 - (count[index] ? (value - low) / range : 0)); });
    context.putImageData(picture, 0, 0);
  }
  const rects = data.boxes.map(([x1, y1, x2, y2], region) => {
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    rect.setAttribute("x", x1); rect.setAttribute("y", y1); rect.setAttribute("width", Math.max(0, x2 - x1)); rect.setAttribute("height", Math.max(0, y2 - y1));
    rect.dataset.region = region;
    return rect;
  });
  // Small regions above large ones, so that each can be pointed at.
  rects.map((rect, region) => [rect, (data.boxes[region][2] - data.boxes[region][0]) * (data.boxes[region][3] - data.boxes[region][1])])
    .sort((a, b) => b[1] - a[1]).forEach(([rect]) => svg.append(rect));
  const buttons = data.words.map((word, index) => {
    const button = document.createElement("button"), value = document.createElement("small");
    button.type = "button"; button.textContent = word; value.textContent = (data.scores[index] >= 0 ? "+" : "") + data.scores[index].toFixed(2);
    button.append(value);
    for (const event of ["mouseenter", "focus", "click"]) button.addEventListener(event, () => showWord(index));
    return button;
  });
  words.append(...buttons);

  function reset() { for (const item of [...rects, ...buttons]) { item.classList.remove("on"); item.style.removeProperty("--weight"); } }
  function showWord(index) {
    reset(); dim(data.attention[index]);
    const region = data.strongest[index];
    buttons[index].classList.add("on"); rects[region].classList.add("on");
    note.textContent = `“${data.words[index]}” looks most (${Math.round(100 * data.attention[index][region])} %) at ` + (data.names[region] || `region ${region + 1}`);
  }
  function showRegion(region) {
    reset(); context.clearRect(0, 0, canvas.width, canvas.height); rects[region].classList.add("on");
    const weights = data.attention.map((row) => row[region]), most = Math.max(...weights, 1e-12);
    buttons.forEach((button, index) => button.style.setProperty("--weight", weights[index] / most));
    const best = weights.indexOf(Math.max(...weights));
    note.textContent = (data.names[region] || `region ${region + 1}`) + `: looked at most by “${data.words[best]}” (${Math.round(100 * weights[best])} %)`;
  }
  svg.addEventListener("mousemove", (event) => { if (event.target.dataset.region) showRegion(+event.target.dataset.region); });
  showWord(data.scores.slice(1, -1).reduce((best, value, index) => (value > data.scores[best] ? index + 1 : best), Math.min(1, data.words.length - 1)));
}
