"""De-identification: the boundary before which objects hold PHI and behind which they do not.

PS3.15 Annex E, Basic Application Level Confidentiality Profile with the options that a site chose, and stricter than it
where the profile leaves room: see ``docs/deidentification.md``. Fundus photographs identify by themselves, and text
burned into pixels is looked for only where Clean Pixel Data is chosen: the path to the models never does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydicom import Dataset

from gateway.deidentification.allow_list import accepted_sop_classes, known_sop_classes
from gateway.deidentification.changes import ChangeRecord
from gateway.deidentification.codes import MeaningRule
from gateway.deidentification.copying import Copy, Rules
from gateway.deidentification.evidence import IMPLEMENTATION_CLASS_UID, new_file_meta, write_evidence
from gateway.deidentification.keys import load_or_create_key
from gateway.deidentification.options import DeidentificationProfile, Option
from gateway.deidentification.pixel_data import PIXEL_DATA
from gateway.deidentification.profile import Profile
from gateway.deidentification.pseudonyms import Pseudonyms
from gateway.deidentification.safe_private import SafePrivateList
from gateway.deidentification.text import TextCleaner
from gateway.errors import DeidentificationError
from gateway.study import DeidentifiedInstance, DeidentifiedStudy, ReceivedInstance, Study

if TYPE_CHECKING:
    from gateway.deidentification.burned_in_text import TextFinder

__all__ = ["IMPLEMENTATION_CLASS_UID", "Deidentifier", "load_or_create_key"]

_BASIC = DeidentificationProfile()


class Deidentifier:
    """Makes copies of objects that hold no identity, the same for the same key in every process.

    Parameters
    ----------
    key
        At least 32 random bytes, secret and kept: see :func:`load_or_create_key`.
    profile
        Options of PS3.15 E.3 and what a site allows.
    text_finder
        Looks for text burned into pixels, needed for Clean Pixel Data; and into overlays, which Clean Graphics keeps
        only when they were looked at.

    Raises
    ------
    DeidentificationError
        If the key is weak, Clean Pixel Data is chosen and there is nothing to find text with, or the site adds a SOP
        class for which there is no allow-list.
    """

    def __init__(
        self, key: bytes, profile: DeidentificationProfile = _BASIC, *, text_finder: TextFinder | None = None
    ) -> None:
        if Option.CLEAN_PIXEL_DATA in profile.options and text_finder is None:
            raise DeidentificationError("clean_pixel_data is chosen, but nothing finds text in pixels here")
        without_list = profile.further_sop_classes - known_sop_classes()
        if without_list:
            raise DeidentificationError(
                f"further_sop_classes: there is no allow-list for {', '.join(sorted(without_list))}"
            )
        self.profile = profile
        self._text_finder = text_finder
        self._pseudonyms = Pseudonyms(key, profile.largest_date_shift_days)
        self._rules = Rules(
            chosen=profile,
            profile=Profile(profile.options),
            pseudonyms=self._pseudonyms,
            safe_private=SafePrivateList(profile.safe_private),
            meanings=MeaningRule(TextCleaner(()).clean),
            sop_classes=accepted_sop_classes() | profile.further_sop_classes,
            text_finder=text_finder,
        )

    def uid(self, original: str) -> str:
        """The UID that stands for `original` wherever it occurs: itself under Retain UIDs."""
        if Option.RETAIN_UIDS in self.profile.options:
            return original.strip(" \x00")
        return self._pseudonyms.uid(original)

    def patient_pseudonym(self, patient_id: str) -> str:
        """16 hexadecimal digits that stand for a patient ID."""
        return self._pseudonyms.patient(patient_id)

    def date_shift_days(self, patient_id: str) -> int:
        """By how many days this patient's dates move into the past under Modified Dates."""
        return self._pseudonyms.date_shift_days(patient_id)

    def local_code(self, scheme: str, value: str) -> str:
        """16 hexadecimal digits that stand for a code of a scheme that is not public."""
        return self._pseudonyms.local_code(scheme, value)

    def study(self, study: Study) -> DeidentifiedStudy:
        """Every instance of a study, read and de-identified.

        Raises
        ------
        DeidentificationError
            If one of them cannot be; the text holds the gateway's own key for it and no PHI.
        """
        return DeidentifiedStudy(
            study_key=study.study_key, instances=tuple(self.instance(received) for received in study.instances)
        )

    def instance(self, received: ReceivedInstance) -> DeidentifiedInstance:
        """One instance of a study; raises as :meth:`study` does."""
        try:
            deidentified = self.dataset(received.read())
        except DeidentificationError as error:
            raise DeidentificationError(f"instance {received.instance_key}: {error}") from error
        return DeidentifiedInstance(instance_key=received.instance_key, dataset=deidentified)

    def dataset(self, original: Dataset, *, changes: ChangeRecord | None = None) -> Dataset:
        """A de-identified copy with a file meta of its own, in the transfer syntax of the original.

        The original is not changed, and the copy shares nothing with it that can change. Native pixel data are not
        copied; encapsulated ones once. What was done to each attribute is added to `changes`.

        Raises
        ------
        DeidentificationError
            If the object cannot be vouched for and so belongs into quarantine; the text says why and holds no PHI: a
            SOP class, transfer syntax, VR or attribute that is not known, compressed streams that cannot be walked.
        """
        run = Copy(self._rules, original, changes)
        copy = run.make()
        pseudonym = self._pseudonyms.patient(run.patient_id)
        copy.PatientName, copy.PatientID = f"PSEUDONYM^{pseudonym}", pseudonym
        copy.file_meta = new_file_meta(copy, run.sop_class_uid, run.transfer_syntax_uid)
        options = set(self.profile.options)
        if Option.CLEAN_PIXEL_DATA in options and not self._clean_pixels(copy):
            options.remove(Option.CLEAN_PIXEL_DATA)
        write_evidence(copy, options, run.sop_class_uid)
        if changes is not None:
            _note_new_parts(original, copy, changes)
        return copy

    def _clean_pixels(self, copy: Dataset) -> bool:
        """Whether there were pixels, in which text was looked for and blanked."""
        if self._text_finder is None or PIXEL_DATA not in copy:
            return False
        from gateway.deidentification.clean_pixels import clean_pixels

        clean_pixels(copy, self._text_finder)
        copy.BurnedInAnnotation = "NO"
        return True


def _note_new_parts(original: Dataset, copy: Dataset, changes: ChangeRecord) -> None:
    """Note the file meta, and what the object did not have before."""
    for tag in map(int, getattr(original, "file_meta", {}).keys()):
        changes.add("", tag, "replaced" if tag in copy.file_meta else "removed", "E.1.1: file meta written anew")
    for tag in map(int, copy.keys()):
        if tag not in original:
            changes.add("", tag, "replaced", "E.1.1: says that and how the object is de-identified")
