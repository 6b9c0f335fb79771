//! A flame graph out of folded stacks: one SVG without scripts; the words of a frame are its tooltip. Pure.

use std::{collections::BTreeMap, fmt::Write as _};

/// Width of the picture and height of a frame, in pixels.
const WIDTH: f64 = 1200.0;
const HEIGHT: f64 = 17.0;
/// Frames narrower than this are not drawn, in pixels.
const NARROWEST: f64 = 0.3;
/// Width of a letter, in pixels.
const LETTER: f64 = 6.6;
/// Frames that are drawn, at most: a picture of some 4 MB.
const MOST_FRAMES: usize = 20_000;

#[derive(Default)]
struct Node<'a> {
    value: u64,
    children: BTreeMap<&'a str, Node<'a>>,
}

/// A picture with a title; every line of `folded` is `frame;frame;… value`, in a unit.
pub fn svg(title: &str, folded: &str, unit: &str) -> String {
    let root = tree(folded);
    let depth = depth(&root, WIDTH / root.value.max(1) as f64);
    let height = (depth as f64 + 3.0) * HEIGHT;
    let mut text = String::new();
    let _ = write!(
        text,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"monospace\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fffdf8\"/>\n\
         <text x=\"{}\" y=\"15\" text-anchor=\"middle\" font-size=\"14\">{}</text>\n",
        WIDTH / 2.0,
        escaped(title)
    );
    let mut picture = Picture { text, total: root.value.max(1), unit, height, left: MOST_FRAMES };
    picture.draw("all", &root, 0, 0.0);
    if picture.left == 0 {
        let _ = writeln!(picture.text, "<!-- only the first {MOST_FRAMES} frames are drawn -->");
    }
    picture.text.push_str("</svg>\n");
    picture.text
}

struct Picture<'a> {
    text: String,
    total: u64,
    unit: &'a str,
    height: f64,
    left: usize,
}

impl Picture<'_> {
    /// A frame and what is above it, from a place on the left on.
    fn draw(&mut self, name: &str, node: &Node<'_>, level: usize, left: f64) {
        let width = node.value as f64 / self.total as f64 * WIDTH;
        if width < NARROWEST || self.left == 0 {
            return;
        }
        self.left -= 1;
        self.frame(name, node.value, level, left, width);
        let mut place = left;
        for (name, child) in &node.children {
            self.draw(name, child, level + 1, place);
            place += child.value as f64 / self.total as f64 * WIDTH;
        }
    }

    fn frame(&mut self, name: &str, value: u64, level: usize, left: f64, width: f64) {
        let top = self.height - (level as f64 + 1.5) * HEIGHT;
        let percent = value as f64 / self.total as f64 * 100.0;
        let _ = write!(
            self.text,
            "<g><title>{} ({value} {}, {percent:.2} %)</title><rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{:.1}\" \
             fill=\"{}\" rx=\"1\"/>",
            escaped(name),
            self.unit,
            HEIGHT - 1.0,
            colour(name)
        );
        let letters = (width / LETTER) as usize;
        if letters >= 3 {
            let label: String = name.chars().take(letters).collect();
            let _ =
                write!(self.text, "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>", left + 2.0, top + 12.0, escaped(&label));
        }
        self.text.push_str("</g>\n");
    }
}

fn tree(folded: &str) -> Node<'_> {
    let mut root = Node::default();
    for line in folded.lines() {
        let Some((stack, value)) = line.rsplit_once(' ') else { continue };
        let Ok(value) = value.parse::<u64>() else { continue };
        root.value += value;
        let mut node = &mut root;
        for frame in stack.split(';') {
            node = node.children.entry(frame).or_default();
            node.value += value;
        }
    }
    root
}

/// How many levels are drawn.
fn depth(node: &Node<'_>, scale: f64) -> usize {
    let drawn = node.children.values().filter(|child| child.value as f64 * scale >= NARROWEST);
    1 + drawn.map(|child| depth(child, scale)).max().unwrap_or(0)
}

/// Orange for the kernel, yellow to red for user space, grey for what has no name; the same for the same name.
fn colour(name: &str) -> String {
    let hash = name.bytes().fold(0_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let (first, second) = (hash % 50, hash / 50 % 80);
    if name.starts_with('[') || name.starts_with("--") {
        return format!("rgb({0},{0},{0})", 190 + first);
    }
    if name.ends_with("_[k]") {
        return format!("rgb({},{},60)", 235 + first / 3, 140 + second / 2);
    }
    format!("rgb({},{},{})", 205 + first, 90 + second * 3 / 2, 55 + first / 2)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_shares_and_names_are_escaped() {
        let picture = svg("a <title>", "comm;main;hot<u8> 75\ncomm;main;cold_[k] 25\n", "samples");
        assert!(picture.starts_with("<svg ") && picture.trim_end().ends_with("</svg>"));
        assert!(picture.contains("a &lt;title&gt;") && !picture.contains("<u8>"), "{picture}");
        assert!(picture.contains("<title>hot&lt;u8&gt; (75 samples, 75.00 %)</title><rect x=\"300.0\""), "{picture}");
        assert!(picture.contains("cold_[k] (25 samples, 25.00 %)</title><rect x=\"0.0\""), "{picture}");
        assert_eq!(picture.matches("<rect").count(), 6, "background, all, comm, main and two functions");
    }

    #[test]
    fn what_is_too_narrow_is_not_drawn_and_nothing_is_a_picture_too() {
        let picture = svg("t", "a;wide 100000\na;narrow 1\n", "ns");
        assert!(picture.contains("wide") && !picture.contains("narrow"));
        assert!(svg("t", "", "ns").contains("</svg>"));
        assert!(svg("t", "no value\n;; x\n", "ns").contains("</svg>"));
    }
}
