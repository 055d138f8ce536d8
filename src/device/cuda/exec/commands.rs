//! Commands with what the driver prepared for them.

use crate::device::cuda::driver::command::Command;
use crate::device::cuda::driver::gemm::GemmPlan;
use crate::device::cuda::driver::interface::Driver;
use crate::device::cuda::driver::kernel::{Function, Launch};
use crate::error::Result;
use std::collections::HashMap;

/// A command that the driver is ready to carry out.
pub(super) enum PreparedCommand {
    /// A launch whose function is known.
    Launch(Launch),
    /// A product whose algorithm is chosen.
    Gemm(GemmPlan),
    /// A copy within the device: from, to, bytes.
    Copy(u64, u64, usize),
    /// Sets that many bytes from an address on.
    Memset(u64, usize, u8),
}

/// Prepares commands: looks up every kernel once, encodes tensor maps, and lets the library choose for every product.
pub(super) struct Preparation<'a> {
    driver: &'a dyn Driver,
    functions: HashMap<String, Function>,
}

impl<'a> Preparation<'a> {
    /// Begins with no kernel looked up.
    pub(super) fn new(driver: &'a dyn Driver) -> Self {
        Self { driver, functions: HashMap::new() }
    }

    /// Prepares commands in order.
    ///
    /// # Errors
    /// Those of the driver.
    pub(super) fn prepare(&mut self, commands: Vec<Command>) -> Result<Vec<PreparedCommand>> {
        commands.into_iter().map(|command| self.one(command)).collect()
    }

    fn one(&mut self, command: Command) -> Result<PreparedCommand> {
        Ok(match command {
            Command::Launch(mut launch) => {
                launch.function = match self.functions.get(&launch.entry) {
                    Some(function) => *function,
                    None => {
                        let function = self.driver.function(launch.kernel, &launch.entry)?;
                        self.functions.insert(launch.entry.clone(), function);
                        function
                    }
                };
                launch.encode_tensor_maps(|map| self.driver.encode_tensor_map(map))?;
                PreparedCommand::Launch(launch)
            }
            Command::Gemm(gemm) => PreparedCommand::Gemm(self.driver.prepare_gemm(&gemm)?),
            Command::Copy(from, to, bytes) => PreparedCommand::Copy(from, to, bytes),
            Command::Memset(to, bytes, value) => PreparedCommand::Memset(to, bytes, value),
        })
    }
}

/// Issues commands in order. A launch behind a launch may begin early where its kernel waits for that; the library's products, copies
/// and memsets, which wait for nothing by themselves, and what follows them have whole dependencies.
///
/// # Errors
/// Those of the driver.
pub(super) fn issue(driver: &dyn Driver, commands: &[PreparedCommand]) -> Result<()> {
    let mut behind_launch = false;
    for command in commands {
        match command {
            PreparedCommand::Launch(launch) => driver.launch(launch, behind_launch && launch.function.early)?,
            PreparedCommand::Gemm(plan) => driver.gemm(*plan)?,
            PreparedCommand::Copy(from, to, bytes) => driver.copy(*from, *to, *bytes)?,
            PreparedCommand::Memset(to, bytes, value) => driver.memset(*to, *bytes, *value)?,
        }
        behind_launch = matches!(command, PreparedCommand::Launch(_));
    }
    Ok(())
}

/// Releases what the driver prepared.
pub(super) fn release(driver: &dyn Driver, commands: &[PreparedCommand]) {
    for command in commands {
        if let PreparedCommand::Gemm(plan) = command {
            driver.release_gemm(*plan);
        }
    }
}
