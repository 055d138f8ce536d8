//! The commands of a run: issued one by one the first time, captured the second, launched as one graph from then on.

use super::commands::{PreparedCommand, issue, release};
use crate::device::cuda::driver::interface::{Driver, GraphExec};
use crate::error::{Error, Result};

/// The state of a capture.
enum CaptureState {
    /// Nothing has run yet.
    Cold,
    /// Every kernel has run once, so that the libraries have loaded theirs, which a capture would not allow.
    Warm,
    /// The driver does not capture.
    Never,
    /// The captured graph.
    Graph(GraphExec),
}

/// The commands of a run and, once it exists, the graph captured from them.
pub(super) struct CapturedCommands {
    commands: Vec<PreparedCommand>,
    state: CaptureState,
}

impl CapturedCommands {
    /// Holds commands of which nothing has run yet.
    pub(super) fn new(commands: Vec<PreparedCommand>) -> Self {
        Self { commands, state: CaptureState::Cold }
    }

    /// The commands.
    pub(super) fn commands(&self) -> &[PreparedCommand] {
        &self.commands
    }

    /// Whether nothing has run yet.
    pub(super) fn is_cold(&self) -> bool {
        matches!(self.state, CaptureState::Cold)
    }

    /// Runs the commands: one by one the first time, as a captured graph from the second on where the driver captures.
    ///
    /// # Errors
    /// Those of the driver.
    pub(super) fn execute(&mut self, driver: &dyn Driver) -> Result<()> {
        if self.is_cold() {
            issue(driver, &self.commands)?;
            self.state = CaptureState::Warm;
            return Ok(());
        }
        self.capture(driver)?;
        match self.state {
            CaptureState::Graph(graph) => driver.launch_graph(graph),
            _ => issue(driver, &self.commands),
        }
    }

    /// Captures commands that have run once and are not captured yet.
    ///
    /// # Errors
    /// Those of the driver.
    pub(super) fn capture(&mut self, driver: &dyn Driver) -> Result<()> {
        if let CaptureState::Warm = self.state {
            self.state = if driver.begin_capture()? {
                let issued = issue(driver, &self.commands);
                // The capture ends whether or not all went well.
                let graph = driver.end_capture();
                match (issued, graph) {
                    (Ok(()), Ok(graph)) => CaptureState::Graph(graph),
                    (Err(error), Ok(graph)) => {
                        driver.destroy_graph(graph);
                        return Err(error);
                    }
                    // A library's status does not tell that the device is lost; the driver's does.
                    (Err(_), Err(error @ Error::Fault { lost: true, .. })) => return Err(error),
                    (Err(error), Err(_)) | (Ok(()), Err(error)) => return Err(error),
                }
            } else {
                CaptureState::Never
            };
        }
        Ok(())
    }

    /// Destroys the captured graph.
    pub(super) fn destroy_graph(&self, driver: &dyn Driver) {
        if let CaptureState::Graph(graph) = self.state {
            driver.destroy_graph(graph);
        }
    }

    /// Releases what the driver prepared for the commands.
    pub(super) fn release(&self, driver: &dyn Driver) {
        release(driver, &self.commands);
    }
}
