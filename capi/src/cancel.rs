//! Cancellation.

use crate::pointers::{borrow, free, null};
use crate::status::{BRAID_OK, braid_status};
use braid::CancelToken;
use std::ffi::c_void;

/// See braid.h.
pub type braid_work_fn = Option<unsafe extern "C" fn(*mut c_void)>;

/// A flag that stops requests.
pub struct braid_cancel_token(pub(crate) CancelToken);

export! {
    fn braid_cancel_token_new() -> *mut braid_cancel_token {
        Ok(Box::into_raw(Box::new(braid_cancel_token(CancelToken::new()))))
    }

    fn braid_cancel_token_cancel(token: *const braid_cancel_token) {
        borrow(token, "token")?.0.cancel();
        Ok(())
    }

    fn braid_cancel_token_is_cancelled(token: *const braid_cancel_token) -> i32 {
        Ok(i32::from(borrow(token, "token")?.0.is_cancelled()))
    }

    fn braid_cancel_token_scope(token: *const braid_cancel_token, work: braid_work_fn, user_data: *mut c_void) -> braid_status {
        // The work may free it.
        let token = borrow(token, "token")?.0.clone();
        let work = work.ok_or_else(|| null("work"))?;
        token.scope(|| work(user_data));
        Ok(BRAID_OK)
    }

    fn braid_cancel_token_free(token: *mut braid_cancel_token) {
        free(token);
        Ok(())
    }
}
