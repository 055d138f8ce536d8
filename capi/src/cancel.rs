//! Cancellation.

use crate::pointers::{borrow, free};
use braid::CancelToken;

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

    fn braid_cancel_token_free(token: *mut braid_cancel_token) {
        free(token);
        Ok(())
    }
}
