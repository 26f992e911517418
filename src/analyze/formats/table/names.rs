//! The columns of a file by their names, and what is said where one is missing.

use super::GroupBy;
use crate::analyze::formats::Columns;
use crate::analyze::options::Options;

/// The columns of a file, those that are wanted so far, and those that would be if there were any.
pub(super) struct Names<'a> {
    pub(super) known: &'a [String],
    pub(super) wanted: Vec<String>,
    pub(super) absent: Vec<String>,
}

impl Names<'_> {
    /// The slot of a column, if the file has it.
    pub(super) fn find(&mut self, name: &str) -> Option<usize> {
        if !self.known.iter().any(|known| known == name) {
            self.absent.push(name.to_string());
            return None;
        }
        let found = self.wanted.iter().position(|wanted| wanted == name);
        Some(found.unwrap_or_else(|| {
            self.wanted.push(name.to_string());
            self.wanted.len() - 1
        }))
    }

    pub(super) fn get(&mut self, name: &str) -> Result<usize, String> {
        self.find(name)
            .ok_or_else(|| format!("expected a column `{name}`, found {}", listed(self.known)))
    }

    pub(super) fn chosen_or(
        &mut self,
        chosen: &Option<String>,
        usual: &[&str],
    ) -> Result<Option<usize>, String> {
        match chosen {
            Some(name) => self.get(name).map(Some),
            None => Ok(usual.iter().find_map(|name| self.find(name))),
        }
    }

    pub(super) fn group(
        &mut self,
        kind: Columns,
        prompt: &str,
        step: Option<usize>,
        options: &Options,
    ) -> Result<(GroupBy, String), String> {
        if let Some(size) = options.group_size {
            return Ok((GroupBy::Neighbors, format!("{size} neighboring responses")));
        }
        let within = if step.is_some() { " within a step" } else { "" };
        if let Some(name) = &options.columns.group {
            return Ok((GroupBy::Column(self.get(name)?), format!("{name}{within}")));
        }
        let uid = match kind {
            Columns::Verl => self.find("uid"),
            Columns::Trl | Columns::Other => None,
        };
        if let Some(slot) = uid {
            let grouped_by = "uid without session and output".to_string();
            return Ok((GroupBy::Uid(slot), grouped_by));
        }
        match kind {
            Columns::Verl | Columns::Trl => Ok((
                GroupBy::Column(self.get(prompt)?),
                format!("{prompt}{within}"),
            )),
            Columns::Other => Err(format!(
                "expected the column that names the group (--group, or --group-size where groups \
                 are neighbors) and that of the reward (--reward), found columns {}",
                listed(self.known)
            )),
        }
    }

    pub(super) fn rewards(
        &mut self,
        usual: &[String],
        options: &Options,
    ) -> Result<Vec<(String, f64)>, String> {
        let chosen = &options.columns.rewards;
        let terms: Vec<_> = if chosen.is_empty() {
            usual.iter().map(|name| (name.clone(), 1.0)).collect()
        } else {
            let terms = chosen.iter();
            terms.map(|term| (term.name.clone(), term.weight)).collect()
        };
        if terms.is_empty() {
            let found = listed(self.known);
            return Err(format!(
                "expected the column of the reward (--reward), found columns {found}"
            ));
        }
        for (name, _) in &terms {
            self.get(name)?;
        }
        Ok(terms)
    }
}

fn listed(names: &[String]) -> String {
    const MOST: usize = 20;
    let mut shown: Vec<_> = names.iter().take(MOST).map(String::as_str).collect();
    if names.len() > MOST {
        shown.push("…");
    }
    shown.join(", ")
}
