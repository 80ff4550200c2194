//! Drawings: stacked bars, samples in strips, samples by round, lines over a count, intervals of ratios. All are SVG of one width.

use std::ops::Range;

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::ink::{FAINT, GRID, Ink, ON_BAR, TEXT};
use crate::compare::stats::{Spread, is_outlier};
use crate::compare::words::times;

/// Why there is no drawing.
pub(super) type PlotError = DrawingAreaErrorKind<std::io::Error>;
/// A drawing as SVG.
pub(super) type Plotted = Result<String, PlotError>;

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

const WIDTH: u32 = 920;
/// Space for the names of rows.
const NAMES: u32 = 170;
/// Space for what is written behind rows.
const NOTES: u32 = 120;
/// Space for an axis and its title.
const AXIS: u32 = 48;

/// How a value is written, its unit included.
pub(super) type Show = fn(f64) -> String;

/// What a horizontal axis measures.
#[derive(Clone, Copy)]
pub(super) struct Axis<'a> {
    pub(super) title: &'a str,
    pub(super) show: Show,
}

/// A row of pieces, one behind the other.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) parts: Vec<(Ink, f64)>,
    /// Written behind it.
    pub(super) note: String,
}

/// The samples of one arm, by round.
pub(super) struct Samples {
    pub(super) name: String,
    pub(super) ink: Ink,
    pub(super) counted: Vec<(u32, f64)>,
    pub(super) warmup: Vec<(u32, f64)>,
}

/// A ratio and its interval.
pub(super) struct Interval {
    pub(super) name: String,
    pub(super) ink: Ink,
    pub(super) ratio: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) note: String,
}

fn draw(height: u32, body: impl FnOnce(&Area<'_>) -> Result<(), PlotError>) -> Plotted {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        body(&area)?;
        area.present()?;
    }
    Ok(svg)
}

/// Letters; the backend writes them at four fifths of the size that it is asked for.
fn letters(size: f64, ink: Ink, h: HPos) -> TextStyle<'static> {
    ("sans-serif", size * 1.24).into_font().color(&ink.rgb()).pos(Pos::new(h, VPos::Center))
}

/// Rows from the top down, numbered 0, 1, 2; the horizontal axis from `low` to `high`.
fn rows<'a, 'b>(
    area: &'a Area<'b>,
    count: usize,
    (low, high): (f64, f64),
    axis: Axis<'_>,
) -> Result<Chart<'a, 'b>, PlotError> {
    let mut chart = ChartBuilder::on(area)
        .margin_left(NAMES)
        .margin_right(NOTES)
        .margin_top(6)
        .x_label_area_size(AXIS)
        .build_cartesian_2d(low..high, number(count)..0.0)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_labels(8)
        .x_label_formatter(&|x| if *x == 0.0 { "0".to_owned() } else { (axis.show)(*x) })
        .x_desc(axis.title)
        .axis_desc_style(letters(12.0, FAINT, HPos::Center))
        .x_label_style(letters(12.0, FAINT, HPos::Center))
        .axis_style(FAINT.rgb())
        .bold_line_style(GRID.rgb())
        .light_line_style(TRANSPARENT)
        .draw()?;
    Ok(chart)
}

/// The row's name before it, and words behind it.
fn name_row(area: &Area<'_>, chart: &Chart<'_, '_>, row: usize, (name, note): (&str, &str)) -> Result<(), PlotError> {
    let range = chart.x_range();
    let (_, y) = chart.backend_coord(&(range.start, number(row) + 0.5));
    let left = chart.backend_coord(&(range.start, 0.0)).0;
    let right = chart.backend_coord(&(range.end, 0.0)).0;
    area.draw(&Text::new(cut(name, 32), (left - 10, y), letters(13.0, TEXT, HPos::Right)))?;
    area.draw(&Text::new(note.to_owned(), (right + 8, y), letters(12.0, TEXT, HPos::Left)))
}

/// A name that fits beside its row.
fn cut(name: &str, most: usize) -> String {
    if name.chars().count() > most { name.chars().take(most - 1).chain(['…']).collect() } else { name.to_owned() }
}

/// Stacked bars from 0.
pub(super) fn bars(bars: &[Bar], axis: Axis<'_>) -> Plotted {
    let most = bars.iter().map(|b| b.parts.iter().map(|p| p.1).sum::<f64>()).fold(0.0, f64::max);
    draw(height(bars.len(), 34), |area| {
        let mut chart = rows(area, bars.len(), (0.0, room(most)), axis)?;
        for (row, bar) in bars.iter().enumerate() {
            let (top, bottom) = (number(row) + 0.14, number(row) + 0.86);
            let mut from = 0.0;
            for (ink, length) in &bar.parts {
                let to = from + length;
                chart.draw_series([Rectangle::new([(from, top), (to, bottom)], ink.rgb().filled())])?;
                let words = (axis.show)(*length);
                let (a, b) = (chart.backend_coord(&(from, top)).0, chart.backend_coord(&(to, top)).0);
                let (_, y) = chart.backend_coord(&(from, number(row) + 0.5));
                if bar.parts.len() > 1 && i64::from(b - a) > i64::try_from(words.len()).unwrap_or(0) * 7 + 6 {
                    area.draw(&Text::new(words, (a.midpoint(b), y), letters(11.0, ON_BAR, HPos::Center)))?;
                }
                from = to;
            }
            name_row(area, &chart, row, (&bar.name, &bar.note))?;
        }
        Ok(())
    })
}

/// Every sample as a dot; the middle half as a box, the median as a line. A sample far from the others is a ring.
pub(super) fn strips(arms: &[Samples], axis: Axis<'_>) -> Plotted {
    let values = || arms.iter().flat_map(|a| a.counted.iter().map(|s| s.1));
    let range = around(values());
    draw(height(arms.len(), 58), |area| {
        let mut chart = rows(area, arms.len(), range, axis)?;
        for (row, arm) in arms.iter().enumerate() {
            let samples: Vec<f64> = arm.counted.iter().map(|s| s.1).collect();
            let Some(spread) = Spread::of(&samples) else { continue };
            let (top, bottom) = (number(row) + 0.18, number(row) + 0.82);
            let quartiles = [(spread.q1, top), (spread.q3, bottom)];
            chart.draw_series([Rectangle::new(quartiles, arm.ink.rgb().mix(0.22).filled())])?;
            let median = PathElement::new(
                vec![(spread.median, top - 0.08), (spread.median, bottom + 0.08)],
                arm.ink.rgb().stroke_width(3),
            );
            chart.draw_series([median])?;
            for (at, value) in samples.iter().enumerate() {
                // Dots of one row lie in five lines, so that equal ones show.
                let y = number(row) + 0.3 + 0.1 * number(at % 5);
                let (size, style) = if is_outlier(*value, &spread) {
                    (5, arm.ink.rgb().stroke_width(2))
                } else {
                    (4, arm.ink.rgb().mix(0.75).filled())
                };
                chart.draw_series([Circle::new((*value, y), size, style)])?;
            }
            name_row(area, &chart, row, (&arm.name, &(axis.show)(spread.median)))?;
        }
        Ok(())
    })
}

/// Two axes: whole numbers to the right, quantities upwards.
fn field<'a, 'b>(
    area: &'a Area<'b>,
    (along, name): (Range<f64>, &str),
    (up, title, show): (Range<f64>, &str, Show),
) -> Result<Chart<'a, 'b>, PlotError> {
    let mut chart = ChartBuilder::on(area)
        .margin_right(20)
        .margin_top(10)
        .margin_left(14)
        .x_label_area_size(AXIS)
        .y_label_area_size(76)
        .build_cartesian_2d(along, up)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(12)
        .y_labels(6)
        .x_label_formatter(&|x| if x.fract() == 0.0 { format!("{x:.0}") } else { String::new() })
        .y_label_formatter(&|y| if *y == 0.0 { "0".to_owned() } else { show(*y) })
        .x_desc(name)
        .y_desc(title)
        .axis_desc_style(letters(12.0, FAINT, HPos::Center))
        .x_label_style(letters(12.0, FAINT, HPos::Center))
        .y_label_style(letters(12.0, FAINT, HPos::Right))
        .axis_style(FAINT.rgb())
        .bold_line_style(GRID.rgb())
        .light_line_style(TRANSPARENT)
        .draw()?;
    Ok(chart)
}

/// A quantity over a count, from the left to the right.
pub(super) struct Line {
    pub(super) ink: Ink,
    pub(super) points: Vec<(u32, f64)>,
}

/// A line for each arm, over the same count, both axes from 0.
pub(super) fn lines(arms: &[Line], along: &str, (title, show): (&str, Show)) -> Plotted {
    let all = || arms.iter().flat_map(|arm| arm.points.iter());
    let most = all().map(|point| point.1).filter(|value| value.is_finite()).fold(0.0, f64::max);
    let least = all().map(|point| point.1).filter(|value| value.is_finite()).fold(0.0, f64::min);
    let last = all().map(|point| point.0).max().unwrap_or(1);
    draw(280, |area| {
        let mut chart = field(area, (0.0..room(f64::from(last)), along), (least..room(most), title, show))?;
        for arm in arms {
            let points = || arm.points.iter().map(|(count, value)| (f64::from(*count), *value));
            chart.draw_series(LineSeries::new(points(), arm.ink.rgb().stroke_width(2)))?;
            chart.draw_series(points().map(|point| Circle::new(point, 4, arm.ink.rgb().filled())))?;
        }
        Ok(())
    })
}

/// Every sample over the round in which it was taken: drift shows as a slope. Those for warming up are rings.
pub(super) fn by_round(arms: &[Samples], title: &str, show: Show) -> Plotted {
    let all = || arms.iter().flat_map(|a| a.counted.iter().chain(&a.warmup));
    let (_, high) = around(all().map(|s| s.1));
    let last = all().map(|s| s.0).max().unwrap_or(0);
    draw(250, |area| {
        let mut chart = field(area, (0.5..f64::from(last) + 1.5, "round"), (0.0..high, title, show))?;
        for arm in arms {
            let at = |samples: &[(u32, f64)]| {
                samples.iter().map(|(round, value)| (f64::from(*round) + 1.0, *value)).collect::<Vec<_>>()
            };
            chart.draw_series(LineSeries::new(at(&arm.counted), arm.ink.rgb().mix(0.5).stroke_width(1)))?;
            chart.draw_series(at(&arm.counted).into_iter().map(|p| Circle::new(p, 3, arm.ink.rgb().filled())))?;
            chart.draw_series(at(&arm.warmup).into_iter().map(|p| Circle::new(p, 4, arm.ink.rgb().stroke_width(1))))?;
        }
        Ok(())
    })
}

/// Least distance of two numbers on the axis of ratios.
const TICK: i32 = 40;
/// Places of the axis of ratios: equal factors are equal distances.
const TICKS: [f64; 19] =
    [0.01, 0.02, 0.05, 0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0];

/// Intervals of ratios beside the line of 1.
pub(super) fn intervals(rows: &[Interval]) -> Plotted {
    let low = rows.iter().map(|r| r.low).filter(|v| *v > 0.0).fold(0.8, f64::min) / 1.05;
    let high = rows.iter().map(|r| r.high).fold(1.25, f64::max) * 1.05;
    draw(height(rows.len(), 28), |area| {
        let mut chart = ChartBuilder::on(area)
            .margin_left(NAMES + 80)
            .margin_right(NOTES + 150)
            .margin_top(6)
            .margin_bottom(AXIS)
            .build_cartesian_2d(low.ln()..high.ln(), number(rows.len())..0.0)?;
        let bottom = number(rows.len());
        let (one, y) = chart.backend_coord(&(0.0, bottom));
        let mut free = i32::MIN;
        for tick in TICKS.into_iter().filter(|t| (low..=high).contains(t)) {
            let (x, _) = chart.backend_coord(&(tick.ln(), bottom));
            let is_one = x == one;
            if x < free || (!is_one && (x - one).abs() < TICK) {
                continue;
            }
            free = x + TICK;
            let style = if is_one { FAINT.rgb().stroke_width(2) } else { GRID.rgb().stroke_width(1) };
            chart.draw_series([PathElement::new(vec![(tick.ln(), 0.0), (tick.ln(), bottom)], style)])?;
            area.draw(&Text::new(format!("{tick} ×"), (x, y + 14), letters(12.0, FAINT, HPos::Center)))?;
        }
        area.draw(&Text::new("← less", (one - 8, y + 34), letters(12.0, FAINT, HPos::Right)))?;
        area.draw(&Text::new("more →", (one + 8, y + 34), letters(12.0, FAINT, HPos::Left)))?;
        for (at, row) in rows.iter().enumerate() {
            let y = number(at) + 0.5;
            let ends = vec![(row.low.max(low).ln(), y), (row.high.ln(), y)];
            chart.draw_series([PathElement::new(ends, row.ink.rgb().stroke_width(3))])?;
            chart.draw_series([Circle::new((row.ratio.max(low).ln(), y), 5, row.ink.rgb().filled())])?;
            let note = format!("{} [{}, {}]  {}", times(row.ratio), times(row.low), times(row.high), row.note);
            name_row(area, &chart, at, (&row.name, &note))?;
        }
        Ok(())
    })
}

fn height(rows: usize, each: u32) -> u32 {
    u32::try_from(rows).unwrap_or(1).saturating_mul(each).saturating_add(AXIS + 8)
}

/// A little more than the longest, so that nothing touches the edge.
fn room(most: f64) -> f64 {
    if most > 0.0 { most * 1.03 } else { 1.0 }
}

/// From a little below the smallest to a little above the largest.
fn around(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let low = values.clone().fold(f64::INFINITY, f64::min);
    let high = values.fold(f64::NEG_INFINITY, f64::max);
    if !low.is_finite() || !high.is_finite() {
        return (0.0, 1.0);
    }
    let margin = ((high - low) * 0.05).max(high.abs() * 0.005).max(1e-6);
    ((low - margin).max(0.0), high + margin)
}

#[allow(clippy::cast_precision_loss, reason = "numbers of rows and arms")]
fn number(count: usize) -> f64 {
    count as f64
}
