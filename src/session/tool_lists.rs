//! The tool lists of devices. Boards of one model and firmware have equal ones: a list is kept once, and so is each tool that
//! occurs in several lists. Their hellos are equal too.

use std::borrow::Borrow;
use std::cell::RefCell;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::rc::Rc;

use hashbrown::{DefaultHashBuilder, HashMap};

use crate::proto::message;

/// The memory of all lists of one worker, in bytes, as estimated by [`TEXT_OVERHEAD`] and [`LIST_OVERHEAD`]. A list for which
/// there is no more room is not kept.
const MAX_BYTES: usize = 32 * 1024 * 1024;
/// What a text takes besides its characters: two allocations and its entry in a table that may be half empty.
const TEXT_OVERHEAD: usize = 128;
/// What a list takes besides its references, likewise.
const LIST_OVERHEAD: usize = 160;

/// All lists of one worker. A list is freed with the last device that has it.
#[derive(Default)]
pub struct ToolLists(Rc<RefCell<Store>>);

/// A raw text of a list that has not come completely. Devices of one model connect at the same time, after a restart for example: what
/// other lists have is not kept again meanwhile.
pub(super) enum ReceivedText {
    Shared(Text),
    Own(Box<str>),
}

/// A text of a device that others may have too: its hello.
pub(super) struct SharedText {
    text: Text,
    /// None: there was no room for it, so it is this device's own.
    store: Option<Rc<RefCell<Store>>>,
}

/// One device's reference to a list: the size of a pointer, since most devices have one.
pub(super) struct ToolList(Rc<SharedList>);

#[derive(Default)]
struct Store {
    /// Each text and the number of lists that contain it, and of devices that have it apart from a list; a list that contains it twice
    /// counts twice.
    texts: HashMap<Text, u32, DefaultHashBuilder>,
    /// Each list and the number of its devices.
    lists: HashMap<ListKey, u32, DefaultHashBuilder>,
    bytes: usize,
}

struct SharedList {
    /// The result of `initialize`, the tools, and what follows the tools in the result of `tools/list`.
    texts: Box<[Text]>,
    store: Rc<RefCell<Store>>,
}

/// Raw JSON. A thin pointer: lists that differ are mostly such pointers.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Text(Rc<Box<str>>);

struct ListKey(Rc<SharedList>);

impl ToolLists {
    /// A text that a device has sent.
    pub(super) fn received(&self, raw: &str) -> ReceivedText {
        match RefCell::borrow(&self.0).texts.get_key_value(raw) {
            Some((text, _)) => ReceivedText::Shared(text.clone()),
            None => ReceivedText::Own(raw.into()),
        }
    }

    /// A text that is kept as long as a device has it.
    pub(super) fn text(&self, raw: &str) -> SharedText {
        let mut store = self.0.borrow_mut();
        let has_room = store.texts.contains_key(raw) || store.bytes + text_bytes(raw) <= MAX_BYTES;
        match has_room {
            true => SharedText { text: store.text(raw), store: Some(self.0.clone()) },
            false => SharedText { text: Text(Rc::new(raw.into())), store: None },
        }
    }

    /// The list with these raw texts. `next`: the cursor with which the device is asked for the tools behind them. `None` if the
    /// lists of all devices leave no room for it.
    pub(super) fn share(
        &self,
        initialize_result: &str,
        tools: &[ReceivedText],
        next: Option<&str>,
    ) -> Option<ToolList> {
        let end = next.map_or_else(
            || "]}".to_owned(),
            |cursor| format!(r#"],"nextCursor":{}}}"#, message::json_quote(cursor)),
        );
        let raw =
            || std::iter::once(initialize_result).chain(tools.iter().map(|tool| &**tool)).chain([&*end]);
        let mut store = self.0.borrow_mut();
        if let Some(list) = store.find(raw()) {
            return Some(ToolList(list));
        }
        // What occurs twice in this list is counted twice here, which only makes the limit stricter.
        let new = raw().filter(|text| !store.texts.contains_key(*text)).map(text_bytes).sum::<usize>();
        if store.bytes + new + list_bytes(tools.len() + 2) > MAX_BYTES {
            return None;
        }
        let texts: Box<[_]> = raw().map(|text| store.text(text)).collect();
        store.bytes += list_bytes(texts.len());
        let list = Rc::new(SharedList { texts, store: self.0.clone() });
        store.lists.insert(ListKey(list.clone()), 1);
        Some(ToolList(list))
    }
}

impl ToolList {
    /// The device's result of `initialize`, raw.
    pub(super) fn initialize_result(&self) -> &str {
        self.0.texts.first().map_or("", Text::as_str)
    }

    /// The result of a `tools/list`, raw.
    pub(super) fn to_result(&self) -> String {
        let texts = self.0.texts.get(1..).unwrap_or_default();
        let mut result =
            String::with_capacity(16 + texts.iter().map(|text| text.as_str().len() + 1).sum::<usize>());
        result.push_str(r#"{"tools":["#);
        for (i, text) in texts.iter().enumerate() {
            if i > 0 && i + 1 < texts.len() {
                result.push(',');
            }
            result.push_str(text.as_str());
        }
        result
    }
}

impl Deref for ReceivedText {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Shared(text) => text.as_str(),
            Self::Own(text) => text,
        }
    }
}

impl SharedText {
    /// The bytes of a text that is this device's own, since there was no room for it.
    pub(super) fn own_bytes(&self) -> usize {
        if self.store.is_none() { self.len() } else { 0 }
    }
}

impl Deref for SharedText {
    type Target = str;

    fn deref(&self) -> &str {
        self.text.as_str()
    }
}

impl PartialEq for SharedText {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Drop for SharedText {
    fn drop(&mut self) {
        if let Some(store) = &self.store {
            let mut store = store.borrow_mut();
            store.release_text(&self.text);
            shrink(&mut store.texts);
        }
    }
}

impl Drop for ToolList {
    fn drop(&mut self) {
        self.0.store.borrow_mut().release(&self.0.texts);
    }
}

impl Store {
    /// The list with these texts, which has one more device from now on.
    fn find<'a>(&mut self, raw: impl Iterator<Item = &'a str>) -> Option<Rc<SharedList>> {
        let texts = raw.map(|text| self.texts.get_key_value(text).map(|(text, _)| text.clone()));
        let texts = texts.collect::<Option<Vec<_>>>()?;
        let list = self.lists.get_key_value(&*texts).map(|(key, _)| key.0.clone())?;
        *self.lists.get_mut(&*texts)? += 1;
        Some(list)
    }

    /// The text, which occurs in one more list from now on.
    fn text(&mut self, raw: &str) -> Text {
        let known = self.texts.get_key_value(raw).map(|(text, _)| text.clone());
        if let (Some(text), Some(lists)) = (known, self.texts.get_mut(raw)) {
            *lists += 1;
            return text;
        }
        let text = Text(Rc::new(raw.into()));
        self.bytes += text_bytes(raw);
        self.texts.insert(text.clone(), 1);
        text
    }

    /// It occurs in one list less.
    fn release_text(&mut self, text: &Text) {
        let Some(uses) = self.texts.get_mut(text) else { return };
        *uses -= 1;
        if *uses == 0 {
            self.texts.remove(text);
            self.bytes -= text_bytes(text.as_str());
        }
    }

    /// A device of this list has left.
    fn release(&mut self, texts: &[Text]) {
        let Some(devices) = self.lists.get_mut(texts) else { return };
        *devices -= 1;
        if *devices > 0 {
            return;
        }
        self.lists.remove(texts);
        self.bytes -= list_bytes(texts.len());
        texts.iter().for_each(|text| self.release_text(text));
        shrink(&mut self.texts);
        shrink(&mut self.lists);
    }
}

impl Text {
    fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Text {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl Borrow<[Text]> for ListKey {
    fn borrow(&self) -> &[Text] {
        &self.0.texts
    }
}

impl Hash for ListKey {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.0.texts.hash(hasher);
    }
}

impl PartialEq for ListKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.texts == other.0.texts
    }
}

impl Eq for ListKey {}

fn text_bytes(text: &str) -> usize {
    text.len() + TEXT_OVERHEAD
}

fn list_bytes(texts: usize) -> usize {
    texts * size_of::<Text>() + LIST_OVERHEAD
}

/// Returns the memory of a table that has become almost empty.
fn shrink<K: Eq + Hash>(table: &mut HashMap<K, u32, DefaultHashBuilder>) {
    if table.capacity() > 64 + 8 * table.len() {
        table.shrink_to(2 * table.len());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn tools(names: &[&str]) -> Vec<ReceivedText> {
        names.iter().map(|name| ReceivedText::Own(format!("{name:?}").into())).collect()
    }

    fn sizes(lists: &ToolLists) -> (usize, usize) {
        let store = lists.0.borrow_mut();
        assert_eq!(store.bytes == 0, store.lists.is_empty() && store.texts.is_empty());
        (store.lists.len(), store.texts.len())
    }

    #[test]
    fn equal_lists_are_kept_once_and_freed_with_the_last_device() {
        let lists = ToolLists::default();
        let share = |names: &[&str], next| lists.share(r#"{"server":1}"#, &tools(names), next).unwrap();
        let first = share(&["a", "b"], None);
        let second = share(&["a", "b"], None);
        assert!(Rc::ptr_eq(&first.0, &second.0));
        assert_eq!(sizes(&lists), (1, 4));
        // Others have the order, the cursor or a part in common.
        let others =
            [share(&["b", "a"], None), share(&["a", "b"], Some("c\"")), share(&["a", "a", "d"], None)];
        assert_eq!(sizes(&lists), (4, 6));
        assert_eq!(first.initialize_result(), r#"{"server":1}"#);
        let results = [&first, &others[0], &others[1], &others[2]].map(ToolList::to_result);
        assert_eq!(
            results,
            [
                r#"{"tools":["a","b"]}"#,
                r#"{"tools":["b","a"]}"#,
                r#"{"tools":["a","b"],"nextCursor":"c\""}"#,
                r#"{"tools":["a","a","d"]}"#,
            ]
        );
        drop(first);
        assert_eq!(sizes(&lists), (4, 6), "the second device has it still");
        drop(second);
        assert_eq!(sizes(&lists), (3, 6), "its tools are in other lists");
        drop(others);
        assert_eq!(sizes(&lists), (0, 0));
        assert_eq!(share(&[], None).to_result(), r#"{"tools":[]}"#);
    }

    #[test]
    fn a_text_is_kept_once_as_long_as_a_device_has_it_and_by_each_when_there_is_no_room() {
        let lists = ToolLists::default();
        let (first, second) = (lists.text("hello"), lists.text("hello"));
        let list = lists.share("hello", &[], None).unwrap();
        assert_eq!((&*first, first == second, second.own_bytes()), ("hello", true, 0));
        assert!(Rc::ptr_eq(&first.text.0, &list.0.texts[0].0));
        drop((first, list));
        assert_eq!(sizes(&lists), (0, 1));
        let all = lists.text(&"x".repeat(MAX_BYTES - 2 * TEXT_OVERHEAD - 5));
        let own = lists.text("other");
        assert_eq!((&*own, own.own_bytes()), ("other", 5));
        assert_eq!(lists.text("hello").own_bytes(), 0);
        drop((second, all, own));
        assert_eq!(sizes(&lists), (0, 0));
    }

    #[test]
    fn lists_that_all_differ_take_at_most_the_limit_and_known_ones_are_still_found() {
        let lists = ToolLists::default();
        let known = lists.share("{}", &tools(&["known"]), None).unwrap();
        let large = |i: usize| [ReceivedText::Own(format!("{i}{}", "x".repeat(250_000)).into())];
        let kept: Vec<_> = (0..).map_while(|i| lists.share("{}", &large(i), None)).collect();
        let expected = MAX_BYTES / 250_500..=MAX_BYTES / 250_000;
        assert!(expected.contains(&kept.len()), "{}", kept.len());
        let again = lists.share("{}", &tools(&["known"]), None).unwrap();
        assert!(Rc::ptr_eq(&known.0, &again.0));
        assert!(lists.share("{}", &large(0), None).is_some(), "known too");
        drop(kept);
        assert!(lists.share("{}", &large(0), None).is_some());
    }

    #[test]
    fn the_tables_shrink_when_the_devices_leave() {
        let lists = ToolLists::default();
        let kept: Vec<_> =
            (0..5_000).map(|i| lists.share("{}", &tools(&[&i.to_string()]), None).unwrap()).collect();
        drop(kept);
        let store = lists.0.borrow_mut();
        assert!(store.texts.capacity() < 200 && store.lists.capacity() < 200);
    }

    #[test]
    fn a_device_has_only_a_pointer() {
        assert_eq!(size_of::<Option<ToolList>>(), size_of::<usize>());
    }
}
