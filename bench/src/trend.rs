//! Whether a figure grows with time.

/// Figures with the minutes at which they were taken.
#[derive(Debug, Default)]
pub(crate) struct Trend(Vec<(f64, f64)>);

impl Trend {
    pub(crate) fn add(&mut self, minute: f64, figure: f64) {
        self.0.push((minute, figure));
    }

    /// Returns the figures from a minute on.
    pub(crate) fn since(&self, minute: f64) -> Self {
        let later = self.0.iter().filter(|(at, _)| *at >= minute);
        Self(later.copied().collect())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn first_and_last(&self) -> Option<(f64, f64)> {
        Some((self.0.first()?.1, self.0.last()?.1))
    }

    pub(crate) fn most(&self) -> f64 {
        self.0.iter().map(|(_, figure)| *figure).fold(0.0, f64::max)
    }

    /// Returns the growth in a minute of the straight line that is nearest by least squares.
    pub(crate) fn slope(&self) -> f64 {
        let count = f64::from(u32::try_from(self.0.len()).unwrap_or(u32::MAX));
        let mean = |of: fn(&(f64, f64)) -> f64| self.0.iter().map(of).sum::<f64>() / count;
        let (minute, figure) = (mean(|one| one.0), mean(|one| one.1));
        let (mut both, mut square) = (0.0, 0.0);
        for (at, value) in &self.0 {
            both += (at - minute) * (value - figure);
            square += (at - minute).powi(2);
        }
        if square > 0.0 { both / square } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::Trend;

    #[test]
    fn slopes_are_those_of_lines() {
        let mut trend = Trend::default();
        assert!(trend.slope().abs() < f64::EPSILON);
        for at in 0..20 {
            trend.add(f64::from(at), 3.0 * f64::from(at) + f64::from(at % 2));
        }
        assert!((trend.slope() - 3.0).abs() < 0.02, "{}", trend.slope());
        assert_eq!(trend.since(10.0).len(), 10);
        assert_eq!(trend.first_and_last(), Some((0.0, 58.0)));
    }
}
