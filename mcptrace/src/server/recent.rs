//! An answer that is dear to find and good for a moment: calls at the same time share one.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Mutex;

/// The latest answer, and when it was found.
#[derive(Debug)]
pub(super) struct Recent<T>(Mutex<Option<(Instant, Arc<T>)>>);

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Recent<T> {
    /// The latest answer if it is not older than that, else a new one. Who comes while it is looked for waits for it.
    pub(super) async fn get<E>(&self, fresh: Duration, find: impl AsyncFnOnce() -> Result<T, E>) -> Result<Arc<T>, E> {
        let mut latest = self.0.lock().await;
        if let Some((found, answer)) = &*latest
            && found.elapsed() <= fresh
        {
            return Ok(Arc::clone(answer));
        }
        let answer = Arc::new(find().await?);
        *latest = Some((Instant::now(), Arc::clone(&answer)));
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_is_shared_until_it_is_old() {
        let recent = Recent::default();
        let find = |answer: u32| async move || Ok::<_, ()>(answer);
        let minute = Duration::from_mins(1);
        assert_eq!(recent.get(minute, find(1)).await.as_deref(), Ok(&1));
        assert_eq!(recent.get(minute, find(2)).await.as_deref(), Ok(&1));
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(recent.get(Duration::from_millis(1), find(3)).await.as_deref(), Ok(&3));
        assert_eq!(recent.get(Duration::ZERO, async || Err::<u32, _>(())).await, Err(()));
    }
}
