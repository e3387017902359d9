//! Going on where the index turns out to be damaged while it is used.
//!
//! It is made anew from the packs, which keep their numbers and ordinals: what was looked up before
//! still means the same.

use super::tables::Meta;
use super::{Index, is_corrupt, write};
use crate::error::{Error, Result};
use crate::repo::schema::During;

/// Makes an index anew that knows the same packs under the same numbers.
pub type Renewal = Box<dyn Fn(&Index) -> Result<Index> + Send>;

impl Index {
    /// From now on damage that shows makes it anew, once.
    pub fn renew_by(&mut self, renewal: Renewal) {
        self.renewal = Some(renewal);
    }

    /// Why it was made anew while it was used, if it was.
    pub fn renewed(&self) -> Option<&str> {
        self.renewed.as_deref()
    }

    /// Counters that go on where those of an index end that this one replaces, which had no more packs
    /// than these.
    pub fn continue_from(&mut self, before: &Index) -> Result<()> {
        let tx = write(&self.db)?;
        self.state.follow(&tx)?;
        let Meta { next_pack, next_ordinal, .. } = before.state.meta;
        let meta = Meta { next_pack, next_ordinal, ..self.state.meta };
        meta.update(&tx, &self.state.key).and_then(|()| tx.commit()).during("be created")?;
        self.state.meta = meta;
        Ok(())
    }

    /// What `ask` comes to, of a new index if this one turns out to be damaged.
    pub(super) fn sound<T>(&mut self, mut ask: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        match ask(self) {
            Err(why) if is_corrupt(&why) => match self.renewal.take() {
                Some(renewal) => {
                    self.renew(&renewal, &why)?;
                    ask(self)
                }
                None => Err(why),
            },
            done => done,
        }
    }

    fn renew(&mut self, renewal: &Renewal, why: &Error) -> Result<()> {
        let mut new = renewal(self)?;
        *new.state.bad_mut() = std::mem::take(self.state.bad_mut());
        new.state.filters_max = self.state.filters_max;
        new.last_resort = self.last_resort;
        new.renewed = Some(why.to_string());
        *self = new;
        self.refresh()
    }
}
