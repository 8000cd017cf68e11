// What is wrong with the look of `root`, as lines of text, or null if it shows nothing; `layout.py` says what counts.
(root, what) => {
    const CONTROLS = 'button, input, select, textarea, summary, a[href], progress, meter, [role=button], [role=slider], '
        + '[role=progressbar], [contenteditable=true], .noUi-target, .noUi-handle, .progress';
    const MEDIA = 'img, video, canvas, svg';
    const SLACK = 1;  // pixels that rounding may cost
    const GLYPHS = 0.15;  // of a line's height, above and below its letters
    const panel = root.closest('.jp-NotebookPanel') ?? document.documentElement;
    const found = [];
    const report = line => { if (!found.includes(line)) found.push(line); };
    const pixels = number => `${Math.round(number)} px`;

    const visible = element => element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
    const short = text => { const line = text.replace(/\s+/g, ' ').trim(); return line.length > 50 ? line.slice(0, 49) + '…' : line; };
    const words = element => short(element.ariaLabel || element.textContent || element.value || element.title || '');
    const name = leaf => {
        if (leaf.kind === 'text') return `text "${short(leaf.text)}"`;
        const style = typeof leaf.element.className === 'string' ? leaf.element.className.split(/\s+/)[0] : '';
        const says = words(leaf.element);
        return leaf.element.localName + (style && `.${style}`) + (says && ` "${says}"`);
    };

    const shown = [];  // {kind, element, text, rects}
    const add = (kind, element, rects, text = '') => {
        rects = [...rects].filter(r => r.width > 0.5 && r.height > 0.5);
        if (rects.length && visible(element)) shown.push({ kind, element, text, rects });
    };
    const textRects = node => {
        const range = document.createRange();
        range.selectNodeContents(node);
        return range.getClientRects();
    };
    const walk = node => {
        if (node.nodeType === Node.TEXT_NODE) {
            const inside = node.parentElement.closest('option, script, style, textarea, svg');
            if (node.data.trim() && !inside) add('text', node.parentElement, textRects(node), node.data);
        } else if (node.nodeType === Node.ELEMENT_NODE) {
            if (node.matches(CONTROLS) && node.type !== 'hidden') add('control', node, node.matches('a[href]') ? node.getClientRects() : [node.getBoundingClientRect()]);
            else if (node.matches(MEDIA)) add('media', node, [node.getBoundingClientRect()]);
            if (!node.matches('svg, select')) node.childNodes.forEach(walk);
        }
    };
    walk(root);
    if (!shown.length) return null;

    const union = rects => ({
        left: Math.min(...rects.map(r => r.left)), right: Math.max(...rects.map(r => r.right)),
        top: Math.min(...rects.map(r => r.top)), bottom: Math.max(...rects.map(r => r.bottom)),
    });
    const inner = element => {
        const box = element.getBoundingClientRect();
        const left = box.left + element.clientLeft, top = box.top + element.clientTop;
        return { left, right: left + element.clientWidth, top, bottom: top + element.clientHeight };
    };
    const meet = (a, b) => ({
        left: Math.max(a.left, b.left), right: Math.min(a.right, b.right),
        top: Math.max(a.top, b.top), bottom: Math.min(a.bottom, b.bottom),
    });
    const parents = (element, last) => {
        const chain = [];
        for (let e = element; e; e = e.parentElement) { chain.push(e); if (e === last) break; }
        return chain;
    };
    const hides = style => style === 'hidden' || style === 'clip';
    const scrolls = style => style === 'auto' || style === 'scroll';
    const line = text => text.replace(/\s+/g, ' ').trim();
    const toldByTitle = (element, text) => parents(element, root).some(e => line(e.title).includes(line(text)));
    const shortened = leaf => parents(leaf.element, root).some(e => getComputedStyle(e).textOverflow === 'ellipsis' && hides(getComputedStyle(e).overflowX))
        && toldByTitle(leaf.element, leaf.text);

    // What can be seen of a box along one axis, and what takes the rest: it is followed outwards up to the panel. What one
    // can scroll to vertically is not lost, and how far the notebook is scrolled does not matter.
    const along = (chain, box, [low, high, overflow]) => {
        const sideways = overflow === 'overflowX', edges = sideways ? 'side' : 'top or bottom';
        let from = box[low], to = box[high], lost = '';
        for (const ancestor of chain) {
            const style = getComputedStyle(ancestor), flow = style[overflow];
            if (style.display === 'inline' || style.display === 'contents') continue;
            if (!sideways && scrolls(flow) && ancestor !== root && ancestor.contains(root)) break;
            const edge = inner(ancestor), beyond = Math.max(edge[low] - from, to - edge[high]);
            if (beyond > SLACK && !lost) {
                if (hides(flow)) lost = `is cut by ${pixels(beyond)} at the ${edges} of ${name({ element: ancestor })}`;
                else if (sideways && scrolls(flow)) lost = `needs sideways scrolling, ${pixels(beyond)}`;
                else if (sideways && (ancestor === root || ancestor === panel)) lost = `leaves ${name({ element: ancestor })} sideways by ${pixels(beyond)}`;
            }
            if (flow !== 'visible') [from, to] = [Math.max(from, edge[low]), Math.min(to, edge[high])];
        }
        return { from, to, lost };
    };
    const follow = (leaf, rect) => {
        const chain = parents(leaf.kind === 'text' ? leaf.element : leaf.element.parentElement, panel);
        const x = along(chain, rect, ['left', 'right', 'overflowX']), y = along(chain, rect, ['top', 'bottom', 'overflowY']);
        const box = { left: x.from, right: x.to, top: y.from, bottom: y.to };
        return { box: x.to > x.from && y.to > y.from ? box : null, lost: x.lost || y.lost };
    };

    const cut = () => {
        for (const leaf of shown) {
            const { lost } = follow(leaf, union(leaf.rects));
            if (lost && !(leaf.kind === 'text' && shortened(leaf))) report(`${name(leaf)} ${lost}`);
        }
    };

    const ruler = document.createElement('canvas').getContext('2d');
    const textWidth = (text, style) => { ruler.font = style.font; return ruler.measureText(text).width; };
    const LINES = 'input:not([type=checkbox], [type=radio], [type=range], [type=color], [type=file])';
    const said = element => element.matches('select') ? element.selectedOptions[0]?.label ?? ''
        : element.matches('input') ? element.value || element.placeholder : element.textContent;
    const missing = element => {  // pixels of a text's width that do not fit into its element
        const style = getComputedStyle(element);
        const room = element.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
        if (element.matches('select:not([multiple])')) return textWidth(said(element), style) + (style.appearance === 'none' ? 0 : 18) - room;
        if (element.matches(LINES)) return textWidth(said(element), style) - room;
        return hides(style.overflowX) && !element.matches('textarea, select') ? element.scrollWidth - element.clientWidth : 0;
    };
    const clipped = () => {
        for (const element of new Set(shown.filter(l => l.kind !== 'media').map(l => l.element))) {
            if (missing(element) > SLACK && !toldByTitle(element, said(element))) report(`${name({ element })} lacks ${pixels(missing(element))} for its text`);
            if (['null', 'undefined', 'None'].includes(element.title)) report(`${name({ element })} has "${element.title}" as its tooltip`);
        }
    };

    const letters = (leaf, rect) => {
        const rim = leaf.kind === 'text' ? GLYPHS * rect.height : 0;
        return { left: rect.left, right: rect.right, top: rect.top + rim, bottom: rect.bottom - rim };
    };
    const floats = (element, common) => parents(element, common).slice(0, -1).some(e => ['absolute', 'fixed', 'sticky'].includes(getComputedStyle(e).position));
    const common = (a, b) => { let e = a; while (!e.contains(b)) e = e.parentElement; return e; };
    const equal = (p, q) => ['left', 'right', 'top', 'bottom'].every(side => Math.abs(p[side] - q[side]) <= 2 * SLACK);
    const byDesign = (a, b) => {  // a label or control laid over a picture, a picture over a picture
        const above = common(a.element, b.element);
        const [first, second] = [floats(a.element, above), floats(b.element, above)];
        if (a.kind === 'media' && b.kind === 'media') return first || second || equal(union(a.rects), union(b.rects));
        return a.kind === 'media' && second || b.kind === 'media' && first;
    };
    const contains = (a, b) => a.kind !== 'text' && a.element.contains(b.element);
    const overlaps = () => {
        const boxes = shown.map(leaf => leaf.rects.map(r => follow(leaf, letters(leaf, r)).box).filter(Boolean));
        for (let i = 0; i < shown.length; i++) for (let j = i + 1; j < shown.length; j++) {
            const [a, b] = [shown[i], shown[j]];
            for (const one of boxes[i]) for (const two of boxes[j]) {
                const both = meet(one, two), width = both.right - both.left, height = both.bottom - both.top;
                if (width <= SLACK || height <= SLACK || contains(a, b) || contains(b, a) || byDesign(a, b)) continue;
                report(`${name(a)} and ${name(b)} overlap by ${Math.round(width)}x${pixels(height)}`);
            }
        }
    };

    ruler.canvas.width = ruler.canvas.height = 1;
    const colour = css => {  // [r, g, b, alpha], each to 1
        ruler.clearRect(0, 0, 1, 1);
        ruler.fillStyle = css;
        ruler.fillRect(0, 0, 1, 1);
        return [...ruler.getImageData(0, 0, 1, 1).data].map(v => v / 255);
    };
    const over = (below, [r, g, b, alpha]) => [r, g, b].map((v, i) => v * alpha + below[i] * (1 - alpha));
    const mix = (below, above, share) => above.map((v, i) => v * share + below[i] * (1 - share));
    // The colours behind and of a text after everything from the page's root inwards is painted, opacity included.
    const painted = (chain, ink, below = [1, 1, 1]) => {
        const style = getComputedStyle(chain[0]), behind = over(below, colour(style.backgroundColor));
        const [back, front] = chain.length > 1 ? painted(chain.slice(1), ink, behind) : [behind, over(behind, ink)];
        const share = parseFloat(style.opacity);
        return [mix(below, back, share), mix(below, front, share)];
    };
    const luminance = rgb => rgb.map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const contrast = (a, b) => { const [dark, light] = [luminance(a), luminance(b)].sort((x, y) => x - y); return (light + 0.05) / (dark + 0.05); };
    const pale = () => {
        const texts = shown.filter(l => l.kind === 'text' || l.element.matches('select, textarea, input') && l.element.value);
        if (!texts.length) return null;
        for (const leaf of texts) {
            if (leaf.element.closest(':disabled')) continue;
            const chain = parents(leaf.element, null).reverse(), ink = colour(getComputedStyle(leaf.element).color);
            const opaque = chain.findLastIndex(e => colour(getComputedStyle(e).backgroundColor)[3] === 1);
            if (chain.slice(Math.max(0, opaque)).some(e => getComputedStyle(e).backgroundImage.includes('gradient('))) {
                report(`${name(leaf)} lies on a gradient, which no contrast is known for`);
                continue;
            }
            const [back, front] = painted(chain, ink), ratio = contrast(back, front);
            if (ratio < what.contrast) report(`${name(leaf)} has a contrast of ${ratio.toFixed(1)} to its background`);
        }
        return found;
    };

    if (what.check === 'contrast') return pale();
    cut();
    clipped();
    overlaps();
    return found;
}
