"""Clean Graphics (PS3.15 E.3.3): geometry and defined terms stay, text only as cleaned, overlays only as looked at."""

from __future__ import annotations

import io
from collections.abc import Sequence as Several

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from gateway.deidentification.graphics import (
    GRAPHIC_ANNOTATION_SEQUENCE,
    GRAPHIC_GROUP_SEQUENCE,
    GRAPHIC_LAYER_SEQUENCE,
    GraphicsCleaner,
)

SECRET = "KOWALCZYK"
ROWS, COLUMNS = 21, 33  # 693 bits: neither a whole byte nor an even number of bytes


class KnownWords:
    """A cleaner that knows three words, so that these tests need no vocabulary."""

    def clean(self, text: str) -> str:
        return " ".join(word for word in text.split() if word in ("nodule", "left", "5"))


class Looks:
    """Finds text when a picture has more than `most` white pixels, and remembers what it saw."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.seen: list[np.ndarray] = []

    def find(self, picture: np.ndarray) -> Several[object]:
        self.seen.append(picture)
        return ("a box",) if int(np.count_nonzero(picture)) > self.most else ()


def new_uid(original: str) -> str:
    return "2.25." + str(sum(original.encode()))


def cleaner(finder: Looks | None = None) -> GraphicsCleaner:
    return GraphicsCleaner(KnownWords(), new_uid, finder)


def read_again(dataset: Dataset, transfer_syntax_uid: str = ExplicitVRLittleEndian) -> Dataset:
    """The data set as it is after writing and reading: its elements are not decoded yet."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.7")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = UID("1.2.3")
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return dcmread(io.BytesIO(buffer.getvalue()))


def written(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, implicit_vr=False, little_endian=True)
    return buffer.getvalue()


def drawing(frames: int = 1) -> np.ndarray:
    """A cross, uint8 0/1 [frames, rows, columns]."""
    plane = np.zeros((frames, ROWS, COLUMNS), np.uint8)
    plane[:, 10, :] = 1
    plane[0, :, 16] = 1
    return plane


def with_overlay(plane: np.ndarray, *, group: int = 0x6000, big_endian: bool = False) -> Dataset:
    dataset = Dataset()
    packed = np.packbits(plane.ravel(), bitorder="little").tobytes()
    packed += b"\x00" * (len(packed) % 2) + f"{SECRET} ".encode()  # hidden behind the last bit
    if big_endian:
        packed = np.frombuffer(packed, np.uint16).byteswap().tobytes()

    def add(element: int, vr: str, value: object) -> None:
        dataset.add_new((group, element), vr, value)

    add(0x0010, "US", plane.shape[1])
    add(0x0011, "US", plane.shape[2])
    add(0x0015, "IS", plane.shape[0])
    add(0x0022, "LO", SECRET)
    add(0x0040, "CS", "R")
    add(0x0045, "LO", "AUTOMATED")
    add(0x0050, "SS", [1, -3])
    add(0x0100, "US", 1)
    add(0x0102, "US", 0)
    add(0x1001, "CS", SECRET)
    add(0x1302, "DS", "12.5")
    add(0x1500, "LO", SECRET)
    add(0x3000, "OW", packed)
    add(0x4000, "LT", SECRET)
    return dataset


def overlays(dataset: Dataset, finder: Looks | None) -> Dataset:
    kept = Dataset()
    for element in cleaner(finder).overlays(dataset):
        kept.add(element)
    return kept


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.filterwarnings("ignore:.*Explicit VR Big Endian.*")
def test_a_plane_without_text_stays_bit_by_bit(frames: int, syntax: str) -> None:
    big_endian = syntax == ExplicitVRBigEndian
    original = read_again(with_overlay(drawing(frames), big_endian=big_endian), syntax)
    finder = Looks(most=200)
    kept = overlays(original, finder)
    looks = frames * (2 if big_endian else 1)  # some devices do not swap the words: both orders are looked at
    assert [picture.shape for picture in finder.seen] == [(ROWS, COLUMNS)] * looks
    assert np.array_equal(np.stack(finder.seen[-frames:]), drawing(frames) * 255)
    copy = read_again(kept, syntax)
    if big_endian:  # PS3.5 7.3: words of 16 bits, most significant byte first; pydicom reads overlays without that
        copy[0x60003000].value = np.frombuffer(copy[0x60003000].value, ">u2").astype("<u2").tobytes()
    assert np.array_equal(np.asarray(copy.overlay_array(0x6000)).reshape(frames, ROWS, COLUMNS), drawing(frames))
    assert len(copy[0x60003000].value) == (ROWS * COLUMNS * frames + 7) // 8 + (ROWS * COLUMNS * frames + 7) // 8 % 2


def test_labels_descriptions_and_comments_go_terms_and_numbers_stay() -> None:
    kept = overlays(read_again(with_overlay(drawing())), Looks(most=200))
    assert {element.tag.element for element in kept} == {
        *(0x0010, 0x0011, 0x0015, 0x0040, 0x0045, 0x0050, 0x0100, 0x0102, 0x1001, 0x1302, 0x3000),
    }
    assert kept[0x60000040].value == "R"
    assert kept[0x60000045].value == "AUTOMATED"
    assert list(kept[0x60000050].value) == [1, -3]
    assert kept[0x60001001].value == "LAYER1"
    assert float(kept[0x60001302].value) == 12.5
    assert SECRET.encode() not in written(kept)


def test_a_plane_with_text_goes_whole_and_the_other_stays() -> None:
    picture = Image.new("L", (COLUMNS, ROWS))
    ImageDraw.Draw(picture).text((0, 0), "DOE", fill=255)
    both = with_overlay(drawing())
    both.update(with_overlay((np.asarray(picture) > 127)[None].astype(np.uint8), group=0x6002))
    kept = overlays(read_again(both), _FindsText())
    assert {element.tag.group for element in kept} == {0x6000}


class _FindsText(Looks):
    """Says text for what is not the cross."""

    def __init__(self) -> None:
        super().__init__(0)

    def find(self, picture: np.ndarray) -> Several[object]:
        return () if np.array_equal(picture, drawing()[0] * 255) else ("a box",)


def test_no_plane_stays_without_a_finder() -> None:
    assert not list(cleaner().overlays(read_again(with_overlay(drawing()))))


@pytest.mark.parametrize(
    ("element", "value"),
    [
        (0x0010, 4000),  # more bits than there are
        (0x0015, "9"),
        (0x0100, 16),  # in the unused bits of pixels, retired
        (0x0102, 12),
    ],
)
def test_planes_that_cannot_be_read_go(element: int, value: object) -> None:
    dataset = with_overlay(drawing())
    dataset[0x6000, element].value = value
    assert not list(cleaner(Looks(most=10_000)).overlays(read_again(dataset)))


@pytest.mark.parametrize("text", [b"KOWALCZYK ANNA", b"12345678", "KOWALCZYK".encode("utf-16-le")])
def test_a_plane_whose_bytes_spell_something_goes(text: bytes) -> None:
    """As a picture it is a few scattered points; a reader of the bytes sees the name."""
    plane = drawing()
    hidden = np.unpackbits(np.frombuffer(text, np.uint8), bitorder="little")
    plane.ravel()[8 * 40 : 8 * 40 + len(hidden)] = hidden
    assert not list(cleaner(Looks(most=10_000)).overlays(read_again(with_overlay(plane))))


def test_hatching_is_not_taken_for_letters() -> None:
    plane = np.zeros((1, 24, 32), np.uint8)
    plane[..., ::2] = 1  # bytes 0x55, which is U
    assert list(cleaner(Looks(most=10_000)).overlays(read_again(with_overlay(plane))))


def test_curves_and_repeating_groups_out_of_range_are_no_overlays() -> None:
    dataset = with_overlay(drawing(), group=0x6020)
    dataset.update(with_overlay(drawing(), group=0x5000))
    assert not list(cleaner(Looks(most=10_000)).overlays(dataset))


def annotated() -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.826.77"
    reference.ReferencedFrameNumber = 4
    line = Dataset()
    line.GraphicAnnotationUnits, line.GraphicDimensions, line.NumberOfGraphicPoints = "PIXEL", 2, 2
    line.GraphicData, line.GraphicType, line.GraphicFilled = [1.5, 2.5, 30.25, 40.0], "POLYLINE", "N"
    named = Dataset()
    named.GraphicAnnotationUnits, named.GraphicType, named.GraphicData = "PIXEL", SECRET, [1.0, 1.0]
    kept_text, lost_text = Dataset(), Dataset()
    for text_object, text in ((kept_text, f"nodule left 5 {SECRET}"), (lost_text, SECRET)):
        text_object.UnformattedTextValue = text
        text_object.AnchorPoint, text_object.AnchorPointVisibility = [7.0, 8.0], "Y"
        text_object.AnchorPointAnnotationUnits = "PIXEL"
    style = Dataset()
    style.FontName, style.CSSFontName, style.HorizontalAlignment = SECRET, SECRET, "LEFT"
    kept_text.TextStyleSequence = Sequence([style])
    tick = Dataset()
    tick.TickPosition, tick.TickLabel = 0.5, SECRET
    ruler = Dataset()
    ruler.CompoundGraphicInstanceID, ruler.CompoundGraphicUnits = 1, "PIXEL"
    ruler.GraphicData, ruler.CompoundGraphicType = [1.0, 2.0, 3.0, 4.0], "RULER"
    ruler.MajorTicksSequence, ruler.GraphicGroupID = Sequence([tick]), 3
    item = Dataset()
    item.GraphicLayer = SECRET
    item.ReferencedImageSequence = Sequence([reference])
    item.GraphicObjectSequence = Sequence([line, named])
    item.TextObjectSequence = Sequence([lost_text, kept_text])
    item.CompoundGraphicSequence = Sequence([ruler])
    item.add_new(0x00091001, "LO", SECRET)
    item.PatientName = SECRET
    only_text = Dataset()
    only_text.GraphicLayer = "SECOND"
    only_text.TextObjectSequence = Sequence([lost_text])
    dataset = Dataset()
    dataset.GraphicAnnotationSequence = Sequence([item, only_text])
    layers = []
    for order, name in enumerate(("SECOND", SECRET)):
        layer = Dataset()
        layer.GraphicLayer, layer.GraphicLayerOrder, layer.GraphicLayerDescription = name, order, f"left {SECRET}"
        layers.append(layer)
    dataset.GraphicLayerSequence = Sequence(layers)
    group = Dataset()
    group.GraphicGroupID, group.GraphicGroupLabel, group.GraphicGroupDescription = 3, SECRET, SECRET
    dataset.GraphicGroupSequence = Sequence([group])
    return read_again(dataset)


def cleaned_annotations() -> Dataset:
    original, graphics, kept = annotated(), cleaner(), Dataset()
    for tag in (GRAPHIC_ANNOTATION_SEQUENCE, GRAPHIC_LAYER_SEQUENCE, GRAPHIC_GROUP_SEQUENCE):
        element = graphics.sequence(original, tag)
        assert element is not None
        kept.add(element)
    return kept


def test_geometry_stays_and_nothing_that_says_who() -> None:
    kept = cleaned_annotations()
    assert SECRET.encode() not in written(kept)
    (item,) = kept.GraphicAnnotationSequence
    assert {element.keyword for element in item} == {
        *("GraphicLayer", "ReferencedImageSequence", "GraphicObjectSequence"),
        *("TextObjectSequence", "CompoundGraphicSequence"),
    }
    (line,) = item.GraphicObjectSequence
    assert list(line.GraphicData) == [1.5, 2.5, 30.25, 40.0]
    assert (line.GraphicType, line.GraphicFilled, line.GraphicDimensions, line.NumberOfGraphicPoints) == (
        *("POLYLINE", "N", 2, 2),
    )
    (text,) = item.TextObjectSequence
    assert text.UnformattedTextValue == "nodule left 5"
    assert list(text.AnchorPoint) == [7.0, 8.0]
    assert text.TextStyleSequence[0].CSSFontName == "sans-serif"
    assert "FontName" not in text.TextStyleSequence[0]
    (ruler,) = item.CompoundGraphicSequence
    assert ruler.CompoundGraphicType == "RULER"
    assert ruler.MajorTicksSequence[0].TickPosition == 0.5
    assert "TickLabel" not in ruler.MajorTicksSequence[0]


def test_coordinates_whose_bytes_spell_something_go() -> None:
    dataset = annotated()
    line = dataset.GraphicAnnotationSequence[0].GraphicObjectSequence[0]
    line.GraphicData = np.frombuffer(b"KOWALCZYK ANNA  ", "<f4").tolist()
    kept = cleaner().sequence(read_again(dataset), GRAPHIC_ANNOTATION_SEQUENCE)
    assert kept is not None
    assert "GraphicObjectSequence" not in kept.value[0]
    assert SECRET.encode() not in written(Dataset({kept.tag: kept}))


def test_layers_have_neutral_names_that_agree() -> None:
    kept = cleaned_annotations()
    by_order = {layer.GraphicLayerOrder: layer.GraphicLayer for layer in kept.GraphicLayerSequence}
    assert kept.GraphicAnnotationSequence[0].GraphicLayer == by_order[1]
    assert by_order[0] != by_order[1]
    assert set(by_order.values()) == {"LAYER1", "LAYER2"}
    assert kept.GraphicLayerSequence[0].GraphicLayerDescription == "left"
    assert kept.GraphicGroupSequence[0].GraphicGroupLabel == "GROUP1"


def test_references_lead_to_the_new_uids() -> None:
    (reference,) = cleaned_annotations().GraphicAnnotationSequence[0].ReferencedImageSequence
    assert reference.ReferencedSOPInstanceUID == new_uid("1.2.826.77")
    assert reference.ReferencedSOPClassUID == "1.2.840.10008.5.1.4.1.1.2"
    assert reference.ReferencedFrameNumber == 4


def test_an_annotation_of_which_nothing_is_left_goes() -> None:
    dataset = Dataset()
    text_object = Dataset()
    text_object.UnformattedTextValue = SECRET
    item = Dataset()
    item.TextObjectSequence = Sequence([text_object])
    dataset.GraphicAnnotationSequence = Sequence([item])
    assert cleaner().sequence(read_again(dataset), GRAPHIC_ANNOTATION_SEQUENCE) is None


def test_sequences_in_themselves_end() -> None:
    """A hostile object nests text style sequences without end; what no module has is not followed."""
    innermost = Dataset()
    innermost.HorizontalAlignment = "LEFT"
    item = innermost
    for _ in range(50):
        outer = Dataset()
        outer.TextStyleSequence = Sequence([item])
        item = outer
    item.UnformattedTextValue = "nodule"
    annotation, dataset = Dataset(), Dataset()
    annotation.TextObjectSequence = Sequence([item])
    dataset.GraphicAnnotationSequence = Sequence([annotation])
    kept = cleaner().sequence(read_again(dataset), GRAPHIC_ANNOTATION_SEQUENCE)
    assert kept is not None
    assert b"LEFT" not in written(Dataset({kept.tag: kept}))
