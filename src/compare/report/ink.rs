//! Colours of plots. They are written into the drawing as those of the light theme; the style sheet replaces each by its value in the theme of
//! the reader, by the attribute that holds it (SVG 1.1, 6.4: a style sheet's rules go before presentation attributes).

use plotters::style::RGBColor;

/// A colour in both themes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ink {
    light: (u8, u8, u8),
    dark: (u8, u8, u8),
}

const fn ink(light: (u8, u8, u8), dark: (u8, u8, u8)) -> Ink {
    Ink { light, dark }
}

/// Letters.
pub(super) const TEXT: Ink = ink((0x1c, 0x21, 0x28), (0xe4, 0xe7, 0xeb));
/// Axes and their numbers.
pub(super) const FAINT: Ink = ink((0x5a, 0x63, 0x70), (0xa2, 0xac, 0xb8));
/// Lines behind the data.
pub(super) const GRID: Ink = ink((0xdd, 0xe1, 0xe6), (0x35, 0x3c, 0x45));
/// Letters on a filled bar.
pub(super) const ON_BAR: Ink = ink((0xff, 0xff, 0xfe), (0x12, 0x15, 0x19));

/// Arms, in their order.
const ARMS: [Ink; 6] = [
    ink((0x1f, 0x66, 0xb1), (0x76, 0xb4, 0xf3)),
    ink((0xb4, 0x4d, 0x06), (0xf5, 0xa8, 0x5c)),
    ink((0x0b, 0x76, 0x68), (0x57, 0xcf, 0xbb)),
    ink((0x77, 0x48, 0xb8), (0xbe, 0xa2, 0xf2)),
    ink((0xb0, 0x2b, 0x69), (0xf3, 0x92, 0xbb)),
    ink((0x63, 0x68, 0x14), (0xcb, 0xcd, 0x72)),
];

/// Pieces of a bar, in their order: neighbours differ in hue and in lightness.
const PARTS: [Ink; 8] = [
    ink((0x6b, 0x74, 0x80), (0x9a, 0xa4, 0xb1)),
    ink((0x30, 0x72, 0xa8), (0x8c, 0xc2, 0xee)),
    ink((0x2e, 0x7d, 0x4f), (0x6f, 0xcb, 0x95)),
    ink((0xb8, 0x3b, 0x3b), (0xf3, 0x8f, 0x8a)),
    ink((0xa8, 0x65, 0x0c), (0xf0, 0xbd, 0x62)),
    ink((0x84, 0x4a, 0xa3), (0xd0, 0xa0, 0xea)),
    ink((0x0f, 0x7f, 0x8a), (0x63, 0xd0, 0xd8)),
    ink((0x7a, 0x5c, 0x49), (0xd1, 0xb0, 0x9b)),
];

impl Ink {
    /// Of the arm in this place; colours repeat when there are more arms than colours, and names stand beside every mark.
    pub(super) fn of_arm(place: usize) -> Self {
        ARMS.get(place % ARMS.len()).copied().unwrap_or(TEXT)
    }

    /// Of the piece of a bar in this place.
    pub(super) fn of_part(place: usize) -> Self {
        PARTS.get(place % PARTS.len()).copied().unwrap_or(TEXT)
    }

    /// For drawing.
    pub(super) fn rgb(self) -> RGBColor {
        RGBColor(self.light.0, self.light.1, self.light.2)
    }

    /// For the style sheet of the light theme.
    pub(super) fn light(self) -> String {
        hex(self.light)
    }
}

fn hex((r, g, b): (u8, u8, u8)) -> String {
    format!("#{r:02X}{g:02X}{b:02X}")
}

fn all() -> impl Iterator<Item = Ink> {
    [TEXT, FAINT, GRID, ON_BAR].into_iter().chain(ARMS).chain(PARTS)
}

/// Rules that turn drawings and marks of the light theme into those of the dark one.
pub(super) fn dark_rules() -> String {
    let mut rules = String::new();
    for ink in all() {
        let (light, dark) = (hex(ink.light), hex(ink.dark));
        rules.push_str(&format!(
            "svg [fill=\"{light}\"]{{fill:{dark}}}svg [stroke=\"{light}\"]{{stroke:{dark}}}i[data-ink=\"{light}\"]{{background:{dark}!important}}\n"
        ));
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Relative luminance (WCAG 2.1).
    fn luminance((r, g, b): (u8, u8, u8)) -> f64 {
        let linear = |c: u8| {
            let c = f64::from(c) / 255.0;
            if c <= 0.03928 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b)
    }

    fn contrast(a: (u8, u8, u8), b: (u8, u8, u8)) -> f64 {
        let (a, b) = (luminance(a), luminance(b));
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    #[test]
    fn every_colour_is_readable_on_the_paper_of_both_themes_and_is_told_from_the_others_by_its_value() {
        let (light, dark) = ((0xff, 0xff, 0xff), (0x16, 0x1a, 0x1f));
        for ink in ARMS.into_iter().chain(PARTS).chain([TEXT, FAINT]) {
            assert!(contrast(ink.light, light) >= 4.5, "{ink:?} on light: {}", contrast(ink.light, light));
            assert!(contrast(ink.dark, dark) >= 4.5, "{ink:?} on dark: {}", contrast(ink.dark, dark));
        }
        for ink in PARTS {
            assert!(contrast(ink.light, ON_BAR.light) >= 4.5, "letters on {ink:?}");
            assert!(contrast(ink.dark, ON_BAR.dark) >= 4.5, "letters on {ink:?} in the dark");
        }
        let mut values: Vec<_> = all().map(|ink| ink.light).collect();
        values.sort_unstable();
        values.dedup();
        assert_eq!(values.len(), all().count(), "one value for two colours would be replaced by one of them");
    }
}
