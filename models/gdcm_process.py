"""Decode one JPEG frame with GDCM, as a program: codestream on stdin, native samples on stdout.

GDCM ends the process on some damaged streams (an exception thrown through libjpeg's C frames). A worker would die of
one such image, be restarted, and die of it again; a child that dies is one refused frame. It is run by path, with
nothing of this package imported, so that it starts in a tenth of a second.

Arguments: rows, columns, samples a pixel, bits a sample, 1 for a lossless process and 0 for DCT.
"""

from __future__ import annotations

import sys

import gdcm


def main() -> int:
    rows, columns, samples, precision, lossless = (int(argument) for argument in sys.argv[1:6])
    for silence in (gdcm.Trace.WarningOff, gdcm.Trace.ErrorOff, gdcm.Trace.DebugOff):
        silence()
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(sys.stdin.buffer.read())
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    # Named RGB or MONOCHROME2 whatever it is, so that GDCM converts nothing.
    kind = gdcm.PhotometricInterpretation.MONOCHROME2
    if samples > 1:
        kind = gdcm.PhotometricInterpretation.RGB
        image.SetPlanarConfiguration(0)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    syntax = gdcm.TransferSyntax.JPEGLosslessProcess14 if lossless else gdcm.TransferSyntax.JPEGExtendedProcess2_4
    image.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    image.SetPixelFormat(gdcm.PixelFormat(samples, 8 if precision <= 8 else 16, precision, precision - 1, 0))
    content = image.GetBuffer()
    if content is None:
        return 1
    # GDCM gives its bytes as a str.
    sys.stdout.buffer.write(content.encode("utf-8", "surrogateescape"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
