"""The element that an object of each storage SOP class cannot do without and that comes last: one row a class.

A data set cut between two top-level elements is a shorter data set that is well-formed. It is found out by what it then
lacks: elements come in the order of their tags (PS3.5 section 7.1), so that an object whose last tag is lower than the
one named here ends before its content. An object that lacks this element and has one with a higher tag was not cut off
there, and is stored: devices leave out what they should not.

References
----------
PS3.3 Annex A (the modules of each IOD) and Annex C (their attributes). Rows were derived from the tables that highdicom
carries (MIT): the pixel data where the IOD has an Image Pixel Module; else the highest top-level attribute of Type 1 in
its mandatory modules. Chosen by hand, since what bears the content is of Type 1C or 2 there, or devices omit the
derived one: structured reports (C.17.3 *Content Sequence*), encapsulated documents (C.24.2), presentation states with a
Softcopy Presentation LUT (C.11.6), RT Dose (C.8.8.4: a DVH or pixel data), RT Structure Set (C.8.8.8), RT plans
(C.8.8.13), and ophthalmic measurements of one eye or the other (C.8.25). Retired image classes stand beside those that
replaced them. Raw Data and Inventory have no row: nothing that they need comes after their UIDs.
"""

from __future__ import annotations

from collections.abc import Mapping

PIXEL_DATA = 0x7FE00008
"""The lowest of (7FE0,0008) *Float*, (7FE0,0009) *Double Float* and (7FE0,0010) *Pixel Data*."""

LAST_ELEMENTS: Mapping[str, int] = {
    "1.2.840.10008.5.1.4.1.1.77.1.5.3": 0x00220020,  # Stereometric Relationship Storage: Stereo Pairs Sequence
    "1.2.840.10008.5.1.4.1.1.78.7": 0x00221009,  # Ophthalmic Axial Measurements Storage
    "1.2.840.10008.5.1.4.1.1.78.8": 0x00221300,  # Intraocular Lens Calculations Storage
    "1.2.840.10008.5.1.4.1.1.80.1": 0x00240120,  # Ophthalmic Visual Field Static Perimetry Measurements Storage
    "1.2.840.10008.5.1.4.1.1.78.6": 0x0040A730,  # Spectacle Prescription Report Storage: Content Sequence
    "1.2.840.10008.5.1.4.1.1.79.1": 0x0040A730,  # Macular Grid Thickness and Volume Report Storage: Content Sequence
    "1.2.840.10008.5.1.4.1.1.88.11": 0x0040A730,  # Basic Text SR Storage: Content Sequence
    "1.2.840.10008.5.1.4.1.1.88.22": 0x0040A730,  # Enhanced SR Storage: Content Sequence
    "1.2.840.10008.5.1.4.1.1.88.33": 0x0040A730,  # Comprehensive SR Storage: Content Sequence
    "1.2.840.10008.5.1.4.1.1.88.34": 0x0040A730,  # Comprehensive 3D SR Storage: Content Sequence
    "1.2.840.10008.5.1.4.1.1.88.35": 0x0040A730,  # Extensible SR Storage: Content Sequence
    "1.2.840.10008.5.1.4.1.1.88.40": 0x0040A730,  # Procedure Log Storage: Content Sequence
    "1.2.840.10008.5.1.4.1.1.88.50": 0x0040A730,  # Mammography CAD SR Storage: Content Sequence
    "1.2.840.10008.5.1.4.1.1.88.59": 0x0040A730,  # Key Object Selection Document Storage: Content Sequence
    "1.2.840.10008.5.1.4.1.1.88.65": 0x0040A730,  # Chest CAD SR Storage: Content Sequence
    "1.2.840.10008.5.1.4.1.1.88.67": 0x0040A730,  # X-Ray Radiation Dose SR Storage: Content Sequence
    "1.2.840.10008.5.1.4.1.1.88.68": 0x0040A730,  # Radiopharmaceutical Radiation Dose SR Storage: Content Sequence
    "1.2.840.10008.5.1.4.1.1.88.69": 0x0040A730,  # Colon CAD SR Storage: Content Sequence
    "1.2.840.10008.5.1.4.1.1.88.70": 0x0040A730,  # Implantation Plan SR Storage: Content Sequence
    "1.2.840.10008.5.1.4.1.1.88.71": 0x0040A730,  # Acquisition Context SR Storage: Content Sequence
    "1.2.840.10008.5.1.4.1.1.88.72": 0x0040A730,  # Simplified Adult Echo SR Storage: Content Sequence
    "1.2.840.10008.5.1.4.1.1.88.73": 0x0040A730,  # Patient Radiation Dose SR Storage: Content Sequence
    "1.2.840.10008.5.1.4.1.1.88.74": 0x0040A730,  # Planned Imaging Agent Administration SR Storage: Content Sequence
    "1.2.840.10008.5.1.4.1.1.88.75": 0x0040A730,  # Performed Imaging Agent Administration SR Storage: Content Sequence
    "1.2.840.10008.5.1.4.1.1.88.76": 0x0040A730,  # Enhanced X-Ray Radiation Dose SR Storage: Content Sequence
    "1.2.840.10008.5.1.4.1.1.88.77": 0x0040A730,  # Waveform Annotation SR Storage: Content Sequence
    "1.2.840.10008.5.1.4.1.1.104.1": 0x00420011,  # Encapsulated PDF Storage: Encapsulated Document
    "1.2.840.10008.5.1.4.1.1.104.2": 0x00420011,  # Encapsulated CDA Storage: Encapsulated Document
    "1.2.840.10008.5.1.4.1.1.104.3": 0x00420011,  # Encapsulated STL Storage: Encapsulated Document
    "1.2.840.10008.5.1.4.1.1.104.4": 0x00420011,  # Encapsulated OBJ Storage: Encapsulated Document
    "1.2.840.10008.5.1.4.1.1.104.5": 0x00420011,  # Encapsulated MTL Storage: Encapsulated Document
    "1.2.840.10008.5.1.4.1.1.200.3": 0x00440109,  # Protocol Approval Storage: Approval Subject Sequence
    "1.2.840.10008.5.1.4.1.1.78.1": 0x00460014,  # Lensometry Measurements Storage: Right Lens Sequence
    "1.2.840.10008.5.1.4.1.1.78.2": 0x00460050,  # Autorefraction Measurements Storage
    "1.2.840.10008.5.1.4.1.1.78.3": 0x00460070,  # Keratometry Measurements Storage: Keratometry Right Eye Sequence
    "1.2.840.10008.5.1.4.1.1.78.4": 0x00460097,  # Subjective Refraction Measurements Storage
    "1.2.840.10008.5.1.4.1.1.78.5": 0x00460125,  # Visual Acuity Measurements Storage: Viewing Distance Type
    "1.2.840.10008.5.1.4.43.1": 0x006863AC,  # Generic Implant Template Storage: Fixation Method Code Sequence
    "1.2.840.10008.5.1.4.1.1.66.3": 0x00700080,  # Deformable Spatial Registration Storage: Content Label
    "1.2.840.10008.5.1.4.1.1.66.5": 0x00700080,  # Surface Segmentation Storage: Content Label
    "1.2.840.10008.5.1.4.1.1.66.6": 0x00700080,  # Tractography Results Storage: Content Label
    "1.2.840.10008.5.1.4.1.1.67": 0x00700080,  # Real World Value Mapping Storage: Content Label
    "1.2.840.10008.5.1.4.1.1.91.1": 0x00700080,  # Microscopy Bulk Simple Annotations Storage: Content Label
    "1.2.840.10008.5.1.4.39.1": 0x00700080,  # Color Palette Storage: Content Label
    "1.2.840.10008.5.1.4.1.1.9.100.1": 0x00700083,  # Waveform Presentation State Storage: Presentation Creation Time
    "1.2.840.10008.5.1.4.1.1.9.100.2": 0x00700083,  # Waveform Acquisition Presentation State Storage
    "1.2.840.10008.5.1.4.1.1.11.2": 0x00700083,  # Color Softcopy Presentation State Storage: Presentation Creation Time
    "1.2.840.10008.5.1.4.1.1.11.3": 0x00700083,  # Pseudo-Color Softcopy Presentation State Storage
    "1.2.840.10008.5.1.4.1.1.200.2": 0x00700084,  # CT Performed Procedure Protocol Storage: Content Creator's Name
    "1.2.840.10008.5.1.4.1.1.200.8": 0x00700084,  # XA Performed Procedure Protocol Storage: Content Creator's Name
    "1.2.840.10008.5.1.4.1.1.200.1": 0x00700084,  # CT Defined Procedure Protocol Storage: Content Creator's Name
    "1.2.840.10008.5.1.4.1.1.200.7": 0x00700084,  # XA Defined Procedure Protocol Storage: Content Creator's Name
    "1.2.840.10008.5.1.4.1.1.66.1": 0x00700308,  # Spatial Registration Storage: Registration Sequence
    "1.2.840.10008.5.1.4.1.1.66.2": 0x0070031C,  # Spatial Fiducials Storage: Fiducial Set Sequence
    "1.2.840.10008.5.1.4.1.1.11.4": 0x00700403,  # Blending Softcopy Presentation State Storage: Relative Opacity
    "1.2.840.10008.5.1.4.1.1.11.6": 0x00701502,  # Grayscale Planar MPR Volumetric Presentation State Storage
    "1.2.840.10008.5.1.4.1.1.11.7": 0x00701502,  # Compositing Planar MPR Volumetric Presentation State Storage
    "1.2.840.10008.5.1.4.1.1.11.9": 0x00701A08,  # Volume Rendering Volumetric Presentation State Storage
    "1.2.840.10008.5.1.4.1.1.11.10": 0x00701A08,  # Segmented Volume Rendering Volumetric Presentation State Storage
    "1.2.840.10008.5.1.4.1.1.11.11": 0x00701A08,  # Multiple Volume Rendering Volumetric Presentation State Storage
    "1.2.840.10008.5.1.4.1.1.11.8": 0x00701B04,  # Advanced Blending Presentation State Storage
    "1.2.840.10008.5.1.4.38.1": 0x00720200,  # Hanging Protocol Storage: Display Sets Sequence
    "1.2.840.10008.5.1.4.1.1.131": 0x00720422,  # Basic Structured Display Storage
    "1.2.840.10008.5.1.4.44.1": 0x00760032,  # Implant Assembly Template Storage: Component Types Sequence
    "1.2.840.10008.5.1.4.45.1": 0x007800B0,  # Implant Template Group Storage
    "1.2.840.10008.5.1.4.1.1.68.1": 0x00800004,  # Surface Scan Mesh Storage: Shot Duration Time
    "1.2.840.10008.5.1.4.1.1.68.2": 0x00800004,  # Surface Scan Point Cloud Storage: Shot Duration Time
    "1.2.840.10008.5.1.4.1.1.90.1": 0x00820023,  # Content Assessment Results Storage: Assessment Label
    "1.2.840.10008.5.1.4.1.1.11.1": 0x20500010,  # Grayscale Softcopy Presentation State Storage
    "1.2.840.10008.5.1.4.1.1.11.5": 0x20500010,  # XA/XRF Grayscale Softcopy Presentation State Storage
    "1.2.840.10008.5.1.4.1.1.11.12": 0x20500010,  # Variable Modality LUT Softcopy Presentation State Storage
    "1.2.840.10008.5.1.4.1.1.481.2": 0x30040050,  # RT Dose Storage: DVH Sequence
    "1.2.840.10008.5.1.4.1.1.481.3": 0x30060080,  # RT Structure Set Storage: RT ROI Observations Sequence
    "1.2.840.10008.5.1.4.1.1.481.7": 0x30080200,  # RT Treatment Summary Record Storage: Current Treatment Status
    "1.2.840.10008.5.1.4.1.1.481.5": 0x300A0070,  # RT Plan Storage: Fraction Group Sequence
    "1.2.840.10008.5.1.4.1.1.481.8": 0x300A0070,  # RT Ion Plan Storage: Fraction Group Sequence
    "1.2.840.10008.5.1.4.1.1.481.4": 0x300A0206,  # RT Beams Treatment Record Storage: Treatment Machine Sequence
    "1.2.840.10008.5.1.4.1.1.481.6": 0x300A0206,  # RT Brachy Treatment Record Storage: Treatment Machine Sequence
    "1.2.840.10008.5.1.4.1.1.481.9": 0x300A0206,  # RT Ion Beams Treatment Record Storage: Treatment Machine Sequence
    "1.2.840.10008.5.1.4.1.1.481.21": 0x300A079E,  # RT Radiation Set Delivery Instruction Storage
    "1.2.840.10008.5.1.4.34.7": 0x300C0002,  # RT Beams Delivery Instruction Storage: Referenced RT Plan Sequence
    "1.2.840.10008.5.1.4.34.10": 0x300C0022,  # RT Brachy Application Setup Delivery Instruction Storage
    "1.2.840.10008.5.1.4.1.1.481.12": 0x30100033,  # RT Radiation Set Storage: User Content Label
    "1.2.840.10008.5.1.4.1.1.481.13": 0x30100033,  # C-Arm Photon-Electron Radiation Storage: User Content Label
    "1.2.840.10008.5.1.4.1.1.481.11": 0x30100034,  # RT Segment Annotation Storage: User Content Long Label
    "1.2.840.10008.5.1.4.1.1.481.16": 0x30100034,  # RT Radiation Record Set Storage: User Content Long Label
    "1.2.840.10008.5.1.4.1.1.481.17": 0x30100034,  # RT Radiation Salvage Record Storage: User Content Long Label
    "1.2.840.10008.5.1.4.1.1.481.19": 0x30100034,  # C-Arm Photon-Electron Radiation Record Storage
    "1.2.840.10008.5.1.4.1.1.481.22": 0x30100038,  # RT Treatment Preparation Storage: Entity Long Label
    "1.2.840.10008.5.1.4.1.1.481.25": 0x30100038,  # RT Patient Position Acquisition Instruction Storage
    "1.2.840.10008.5.1.4.1.1.481.10": 0x30100057,  # RT Physician Intent Storage: RT Physician Intent Sequence
    "1.2.840.10008.5.1.4.1.1.481.15": 0x30100097,  # Robotic-Arm Radiation Storage: Robotic Path Control Point Sequence
    "1.2.840.10008.5.1.4.1.1.481.20": 0x30100097,  # Robotic Radiation Record Storage
    "1.2.840.10008.5.1.4.1.1.481.14": 0x30100098,  # Tomotherapeutic Radiation Storage
    "1.2.840.10008.5.1.4.1.1.481.18": 0x30100098,  # Tomotherapeutic Radiation Record Storage
    "1.2.840.10008.5.1.4.1.1.9.1.1": 0x54000100,  # 12-lead ECG Waveform Storage: Waveform Sequence
    "1.2.840.10008.5.1.4.1.1.9.1.2": 0x54000100,  # General ECG Waveform Storage: Waveform Sequence
    "1.2.840.10008.5.1.4.1.1.9.1.3": 0x54000100,  # Ambulatory ECG Waveform Storage: Waveform Sequence
    "1.2.840.10008.5.1.4.1.1.9.1.4": 0x54000100,  # General 32-bit ECG Waveform Storage: Waveform Sequence
    "1.2.840.10008.5.1.4.1.1.9.2.1": 0x54000100,  # Hemodynamic Waveform Storage: Waveform Sequence
    "1.2.840.10008.5.1.4.1.1.9.3.1": 0x54000100,  # Cardiac Electrophysiology Waveform Storage: Waveform Sequence
    "1.2.840.10008.5.1.4.1.1.9.4.1": 0x54000100,  # Basic Voice Audio Waveform Storage: Waveform Sequence
    "1.2.840.10008.5.1.4.1.1.9.4.2": 0x54000100,  # General Audio Waveform Storage: Waveform Sequence
    "1.2.840.10008.5.1.4.1.1.9.5.1": 0x54000100,  # Arterial Pulse Waveform Storage: Waveform Sequence
    "1.2.840.10008.5.1.4.1.1.9.6.1": 0x54000100,  # Respiratory Waveform Storage: Waveform Sequence
    "1.2.840.10008.5.1.4.1.1.9.6.2": 0x54000100,  # Multi-channel Respiratory Waveform Storage: Waveform Sequence
    "1.2.840.10008.5.1.4.1.1.9.7.1": 0x54000100,  # Routine Scalp Electroencephalogram Waveform Storage
    "1.2.840.10008.5.1.4.1.1.9.7.2": 0x54000100,  # Electromyogram Waveform Storage: Waveform Sequence
    "1.2.840.10008.5.1.4.1.1.9.7.3": 0x54000100,  # Electrooculogram Waveform Storage: Waveform Sequence
    "1.2.840.10008.5.1.4.1.1.9.7.4": 0x54000100,  # Sleep Electroencephalogram Waveform Storage: Waveform Sequence
    "1.2.840.10008.5.1.4.1.1.9.8.1": 0x54000100,  # Body Position Waveform Storage: Waveform Sequence
    "1.2.840.10008.5.1.4.1.1.4.2": 0x56000020,  # MR Spectroscopy Storage: Spectroscopy Data
    "1.2.840.10008.5.1.4.1.1.1": PIXEL_DATA,  # Computed Radiography Image Storage
    "1.2.840.10008.5.1.4.1.1.1.1": PIXEL_DATA,  # Digital X-Ray Image Storage - For Presentation
    "1.2.840.10008.5.1.4.1.1.1.1.1": PIXEL_DATA,  # Digital X-Ray Image Storage - For Processing
    "1.2.840.10008.5.1.4.1.1.1.2": PIXEL_DATA,  # Digital Mammography X-Ray Image Storage - For Presentation
    "1.2.840.10008.5.1.4.1.1.1.2.1": PIXEL_DATA,  # Digital Mammography X-Ray Image Storage - For Processing
    "1.2.840.10008.5.1.4.1.1.1.3": PIXEL_DATA,  # Digital Intra-Oral X-Ray Image Storage - For Presentation
    "1.2.840.10008.5.1.4.1.1.1.3.1": PIXEL_DATA,  # Digital Intra-Oral X-Ray Image Storage - For Processing
    "1.2.840.10008.5.1.4.1.1.2": PIXEL_DATA,  # CT Image Storage
    "1.2.840.10008.5.1.4.1.1.2.1": PIXEL_DATA,  # Enhanced CT Image Storage
    "1.2.840.10008.5.1.4.1.1.2.2": PIXEL_DATA,  # Legacy Converted Enhanced CT Image Storage
    "1.2.840.10008.5.1.4.1.1.3.1": PIXEL_DATA,  # Ultrasound Multi-frame Image Storage
    "1.2.840.10008.5.1.4.1.1.4": PIXEL_DATA,  # MR Image Storage
    "1.2.840.10008.5.1.4.1.1.4.1": PIXEL_DATA,  # Enhanced MR Image Storage
    "1.2.840.10008.5.1.4.1.1.4.3": PIXEL_DATA,  # Enhanced MR Color Image Storage
    "1.2.840.10008.5.1.4.1.1.4.4": PIXEL_DATA,  # Legacy Converted Enhanced MR Image Storage
    "1.2.840.10008.5.1.4.1.1.6.1": PIXEL_DATA,  # Ultrasound Image Storage
    "1.2.840.10008.5.1.4.1.1.6.2": PIXEL_DATA,  # Enhanced US Volume Storage
    "1.2.840.10008.5.1.4.1.1.6.3": PIXEL_DATA,  # Photoacoustic Image Storage
    "1.2.840.10008.5.1.4.1.1.7": PIXEL_DATA,  # Secondary Capture Image Storage
    "1.2.840.10008.5.1.4.1.1.7.1": PIXEL_DATA,  # Multi-frame Single Bit Secondary Capture Image Storage
    "1.2.840.10008.5.1.4.1.1.7.2": PIXEL_DATA,  # Multi-frame Grayscale Byte Secondary Capture Image Storage
    "1.2.840.10008.5.1.4.1.1.7.3": PIXEL_DATA,  # Multi-frame Grayscale Word Secondary Capture Image Storage
    "1.2.840.10008.5.1.4.1.1.7.4": PIXEL_DATA,  # Multi-frame True Color Secondary Capture Image Storage
    "1.2.840.10008.5.1.4.1.1.12.1": PIXEL_DATA,  # X-Ray Angiographic Image Storage
    "1.2.840.10008.5.1.4.1.1.12.1.1": PIXEL_DATA,  # Enhanced XA Image Storage
    "1.2.840.10008.5.1.4.1.1.12.2": PIXEL_DATA,  # X-Ray Radiofluoroscopic Image Storage
    "1.2.840.10008.5.1.4.1.1.12.2.1": PIXEL_DATA,  # Enhanced XRF Image Storage
    "1.2.840.10008.5.1.4.1.1.13.1.1": PIXEL_DATA,  # X-Ray 3D Angiographic Image Storage
    "1.2.840.10008.5.1.4.1.1.13.1.2": PIXEL_DATA,  # X-Ray 3D Craniofacial Image Storage
    "1.2.840.10008.5.1.4.1.1.13.1.3": PIXEL_DATA,  # Breast Tomosynthesis Image Storage
    "1.2.840.10008.5.1.4.1.1.13.1.4": PIXEL_DATA,  # Breast Projection X-Ray Image Storage - For Presentation
    "1.2.840.10008.5.1.4.1.1.13.1.5": PIXEL_DATA,  # Breast Projection X-Ray Image Storage - For Processing
    "1.2.840.10008.5.1.4.1.1.14.1": PIXEL_DATA,  # Intravascular OCT Image - For Presentation
    "1.2.840.10008.5.1.4.1.1.14.2": PIXEL_DATA,  # Intravascular OCT Image - For Processing
    "1.2.840.10008.5.1.4.1.1.20": PIXEL_DATA,  # Nuclear Medicine Image Storage
    "1.2.840.10008.5.1.4.1.1.30": PIXEL_DATA,  # Parametric Map Storage
    "1.2.840.10008.5.1.4.1.1.66.4": PIXEL_DATA,  # Segmentation Storage
    "1.2.840.10008.5.1.4.1.1.66.7": PIXEL_DATA,  # Label Map Segmentation Storage
    "1.2.840.10008.5.1.4.1.1.66.8": PIXEL_DATA,  # Height Map Segmentation Storage
    "1.2.840.10008.5.1.4.1.1.77.1.1": PIXEL_DATA,  # VL Endoscopic Image Storage
    "1.2.840.10008.5.1.4.1.1.77.1.1.1": PIXEL_DATA,  # Video Endoscopic Image Storage
    "1.2.840.10008.5.1.4.1.1.77.1.2": PIXEL_DATA,  # VL Microscopic Image Storage
    "1.2.840.10008.5.1.4.1.1.77.1.2.1": PIXEL_DATA,  # Video Microscopic Image Storage
    "1.2.840.10008.5.1.4.1.1.77.1.3": PIXEL_DATA,  # VL Slide-Coordinates Microscopic Image Storage
    "1.2.840.10008.5.1.4.1.1.77.1.4": PIXEL_DATA,  # VL Photographic Image Storage
    "1.2.840.10008.5.1.4.1.1.77.1.4.1": PIXEL_DATA,  # Video Photographic Image Storage
    "1.2.840.10008.5.1.4.1.1.77.1.5.1": PIXEL_DATA,  # Ophthalmic Photography 8 Bit Image Storage
    "1.2.840.10008.5.1.4.1.1.77.1.5.2": PIXEL_DATA,  # Ophthalmic Photography 16 Bit Image Storage
    "1.2.840.10008.5.1.4.1.1.77.1.5.4": PIXEL_DATA,  # Ophthalmic Tomography Image Storage
    "1.2.840.10008.5.1.4.1.1.77.1.5.5": PIXEL_DATA,  # Wide Field Ophthalmic Photography Stereographic Projection Image
    "1.2.840.10008.5.1.4.1.1.77.1.5.6": PIXEL_DATA,  # Wide Field Ophthalmic Photography 3D Coordinates Image Storage
    "1.2.840.10008.5.1.4.1.1.77.1.5.7": PIXEL_DATA,  # Ophthalmic Optical Coherence Tomography En Face Image Storage
    "1.2.840.10008.5.1.4.1.1.77.1.5.8": PIXEL_DATA,  # Ophthalmic Optical Coherence Tomography B-scan Volume Analysis...
    "1.2.840.10008.5.1.4.1.1.77.1.6": PIXEL_DATA,  # VL Whole Slide Microscopy Image Storage
    "1.2.840.10008.5.1.4.1.1.77.1.7": PIXEL_DATA,  # Dermoscopic Photography Image Storage
    "1.2.840.10008.5.1.4.1.1.77.1.8": PIXEL_DATA,  # Confocal Microscopy Image Storage
    "1.2.840.10008.5.1.4.1.1.77.1.9": PIXEL_DATA,  # Confocal Microscopy Tiled Pyramidal Image Storage
    "1.2.840.10008.5.1.4.1.1.81.1": PIXEL_DATA,  # Ophthalmic Thickness Map Storage
    "1.2.840.10008.5.1.4.1.1.82.1": PIXEL_DATA,  # Corneal Topography Map Storage
    "1.2.840.10008.5.1.4.1.1.128": PIXEL_DATA,  # Positron Emission Tomography Image Storage
    "1.2.840.10008.5.1.4.1.1.130": PIXEL_DATA,  # Enhanced PET Image Storage
    "1.2.840.10008.5.1.4.1.1.128.1": PIXEL_DATA,  # Legacy Converted Enhanced PET Image Storage
    "1.2.840.10008.5.1.4.1.1.481.1": PIXEL_DATA,  # RT Image Storage
    "1.2.840.10008.5.1.4.1.1.481.23": PIXEL_DATA,  # Enhanced RT Image Storage
    "1.2.840.10008.5.1.4.1.1.481.24": PIXEL_DATA,  # Enhanced Continuous RT Image Storage
    "1.2.840.10008.5.1.4.1.1.3": PIXEL_DATA,  # Ultrasound Multi-frame Image Storage
    "1.2.840.10008.5.1.4.1.1.5": PIXEL_DATA,  # Nuclear Medicine Image Storage
    "1.2.840.10008.5.1.4.1.1.6": PIXEL_DATA,  # Ultrasound Image Storage
    "1.2.840.10008.5.1.4.1.1.12.3": PIXEL_DATA,  # X-Ray Angiographic Bi-Plane Image Storage
    "1.2.840.10008.5.1.4.1.1.77.1": PIXEL_DATA,  # VL Image Storage - Trial
    "1.2.840.10008.5.1.4.1.1.77.2": PIXEL_DATA,  # VL Multi-frame Image Storage - Trial
}
