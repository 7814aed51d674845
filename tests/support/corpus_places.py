"""Where in a data set identifiers are planted: one row a place, with what the standard lets stay under which option.

A place is a path of PS3.6 keywords; ``>`` goes into the first item of a sequence. Options are those with K in the row
of PS3.15 Table E.1-1 for the attribute, if no sequence around it is removed. Knows nothing of the gateway.
"""

from __future__ import annotations

from corpus_tokens import CHARACTERISTICS, DATES, DEVICE, INSTITUTION, NEVER, UIDS, Planter
from pydicom import DataElement, Dataset, Sequence
from pydicom.datadict import dictionary_VR, tag_for_keyword

PLACES: tuple[tuple[str, str, frozenset[str]], ...] = (
    # Patient
    ("OtherPatientNames", "person", NEVER),
    ("OtherPatientIDsSequence>PatientID", "identifier", NEVER),
    ("OtherPatientIDsSequence>IssuerOfPatientID", "identifier", NEVER),
    ("PatientBirthName", "person", NEVER),
    ("PatientMotherBirthName", "person", NEVER),
    ("PatientBirthTime", "time", NEVER),
    ("PatientAddress", "address", NEVER),
    ("PatientTelephoneNumbers", "phone", NEVER),
    ("PatientTelecomInformation", "mail", NEVER),
    ("MedicalRecordLocator", "identifier", NEVER),
    ("MilitaryRank", "surname", NEVER),
    ("BranchOfService", "surname", NEVER),
    ("PatientReligiousPreference", "surname", NEVER),
    ("Occupation", "short", NEVER),
    ("CountryOfResidence", "surname", NEVER),
    ("RegionOfResidence", "surname", NEVER),
    ("EthnicGroup", "short", CHARACTERISTICS),
    ("PatientComments", "long", NEVER),
    ("AdditionalPatientHistory", "text", NEVER),
    ("Allergies", "text", NEVER),
    ("MedicalAlerts", "text", NEVER),
    ("SpecialNeeds", "text", NEVER),
    ("PatientState", "text", NEVER),
    ("ResponsiblePerson", "person", NEVER),
    ("ResponsibleOrganization", "surname", NEVER),
    ("LastMenstrualDate", "day", DATES),
    ("InsurancePlanIdentification", "identifier", NEVER),
    ("PatientInsurancePlanCodeSequence>CodeMeaning", "text", NEVER),
    ("PatientInsurancePlanCodeSequence>CodeValue", "identifier", NEVER),
    # Study, visit and order
    ("StudyID", "identifier", NEVER),
    ("IssuerOfAccessionNumberSequence>LocalNamespaceEntityID", "identifier", NEVER),
    ("ReferringPhysicianName", "person", NEVER),
    ("ReferringPhysicianAddress", "address", NEVER),
    ("ReferringPhysicianTelephoneNumbers", "phone", NEVER),
    ("ReferringPhysicianIdentificationSequence>PersonIdentificationCodeSequence>CodeMeaning", "text", NEVER),
    ("ReferringPhysicianIdentificationSequence>PersonAddress", "address", NEVER),
    ("ReferringPhysicianIdentificationSequence>PersonTelephoneNumbers", "phone", NEVER),
    ("ReferringPhysicianIdentificationSequence>InstitutionName", "surname", NEVER),
    ("ConsultingPhysicianName", "person", NEVER),
    ("PhysiciansOfRecord", "person", NEVER),
    ("NameOfPhysiciansReadingStudy", "person", NEVER),
    ("PerformingPhysicianName", "person", NEVER),
    ("OperatorsName", "person", NEVER),
    ("OperatorIdentificationSequence>PersonIdentificationCodeSequence>CodeMeaning", "text", NEVER),
    ("RequestingPhysician", "person", NEVER),
    ("RequestingService", "surname", NEVER),
    ("AdmissionID", "identifier", NEVER),
    ("AdmittingDate", "day", DATES),
    ("AdmittingTime", "time", DATES),
    ("AdmittingDiagnosesDescription", "text", NEVER),
    ("ServiceEpisodeID", "identifier", NEVER),
    ("ServiceEpisodeDescription", "text", NEVER),
    ("ReasonForVisit", "text", NEVER),
    ("ReasonForStudy", "text", NEVER),
    ("StudyComments", "text", NEVER),
    ("CurrentPatientLocation", "surname", NEVER),
    ("PatientInstitutionResidence", "surname", NEVER),
    ("VisitComments", "text", NEVER),
    ("PlacerOrderNumberImagingServiceRequest", "identifier", NEVER),
    ("FillerOrderNumberImagingServiceRequest", "identifier", NEVER),
    ("OrderEnteredBy", "person", NEVER),
    ("OrderCallbackPhoneNumber", "phone", NEVER),
    ("NamesOfIntendedRecipientsOfResults", "person", NEVER),
    ("ReasonForTheImagingServiceRequest", "text", NEVER),
    # Procedure
    ("RequestAttributesSequence>RequestedProcedureDescription", "text", NEVER),
    ("RequestAttributesSequence>RequestedProcedureID", "identifier", NEVER),
    ("RequestAttributesSequence>ScheduledProcedureStepID", "identifier", NEVER),
    ("RequestAttributesSequence>ScheduledProcedureStepDescription", "text", NEVER),
    ("RequestAttributesSequence>AccessionNumber", "identifier", NEVER),
    ("RequestAttributesSequence>StudyInstanceUID", "uid", UIDS),
    ("RequestAttributesSequence>ReasonForTheRequestedProcedure", "text", NEVER),
    ("PerformedProcedureStepID", "identifier", NEVER),
    ("PerformedProcedureStepDescription", "text", NEVER),
    ("PerformedProcedureStepStartDate", "day", DATES),
    ("PerformedProcedureStepStartTime", "time", DATES),
    ("PerformedProcedureStepEndDate", "day", DATES),
    ("PerformedStationAETitle", "ae_title", NEVER),
    ("PerformedStationName", "identifier", DEVICE),
    ("PerformedLocation", "identifier", NEVER),
    ("CommentsOnThePerformedProcedureStep", "text", NEVER),
    ("PerformedProtocolCodeSequence>CodeMeaning", "text", NEVER),
    ("ProcedureCodeSequence>CodeMeaning", "text", NEVER),
    ("ProcedureCodeSequence>CodeValue", "identifier", NEVER),
    ("ReferencedPerformedProcedureStepSequence>ReferencedSOPInstanceUID", "uid", UIDS),
    ("ReferencedStudySequence>ReferencedSOPInstanceUID", "uid", UIDS),
    ("StudyDescription", "descriptor", NEVER),
    ("SeriesDescription", "descriptor", NEVER),
    ("ProtocolName", "text", NEVER),
    ("ImageComments", "text", NEVER),
    ("AcquisitionComments", "text", NEVER),
    ("DerivationDescription", "text", NEVER),
    ("AcquisitionDeviceProcessingDescription", "text", NEVER),
    ("AcquisitionProtocolDescription", "text", NEVER),
    ("RetrieveURL", "url", NEVER),
    ("RetrieveAETitle", "ae_title", NEVER),
    ("WindowCenterWidthExplanation", "short", NEVER),
    # Place and device
    ("InstitutionName", "surname", INSTITUTION),
    ("InstitutionAddress", "address", INSTITUTION),
    ("InstitutionalDepartmentName", "surname", INSTITUTION),
    ("StationName", "identifier", DEVICE),
    ("DeviceSerialNumber", "identifier", DEVICE),
    ("DetectorID", "identifier", DEVICE),
    ("GantryID", "identifier", DEVICE),
    ("PlateID", "identifier", DEVICE),
    ("CassetteID", "identifier", DEVICE),
    ("GeneratorID", "identifier", DEVICE),
    ("DeviceUID", "uid", UIDS | DEVICE),
    ("DateOfLastCalibration", "day", DATES | DEVICE),
    ("TimeOfLastCalibration", "time", DATES | DEVICE),
    # Times of the object
    ("SeriesDate", "day", DATES),
    ("SeriesTime", "time", DATES),
    ("InstanceCreationDate", "day", DATES),
    ("InstanceCreationTime", "time", DATES),
    ("InstanceCreatorUID", "uid", UIDS),
    ("AcquisitionDateTime", "moment", DATES),
    ("ContentDate", "day", DATES),
    ("ContentTime", "time", DATES),
    # Trials and their like
    ("ClinicalTrialSponsorName", "surname", NEVER),
    ("ClinicalTrialProtocolID", "identifier", NEVER),
    ("ClinicalTrialProtocolName", "text", NEVER),
    ("ClinicalTrialSiteID", "identifier", INSTITUTION),
    ("ClinicalTrialSiteName", "surname", INSTITUTION),
    ("ClinicalTrialTimePointID", "identifier", NEVER),
    ("ClinicalTrialSubjectID", "identifier", NEVER),
    ("ClinicalTrialTimePointDescription", "text", NEVER),
    # Sequences in sequences
    ("ContributingEquipmentSequence>InstitutionName", "surname", INSTITUTION),
    ("ContributingEquipmentSequence>OperatorsName", "person", NEVER),
    ("ContributingEquipmentSequence>ContributionDescription", "text", NEVER),
    ("ContributingEquipmentSequence>ContributionDateTime", "moment", DATES),
    ("OriginalAttributesSequence>ModifyingSystem", "surname", NEVER),
    ("OriginalAttributesSequence>AttributeModificationDateTime", "moment", NEVER),
    ("OriginalAttributesSequence>ModifiedAttributesSequence>PatientName", "person", NEVER),
    ("OriginalAttributesSequence>ModifiedAttributesSequence>PatientID", "identifier", NEVER),
    ("AcquisitionContextSequence>TextValue", "text", NEVER),
    ("ReferencedPatientPhotoSequence>ReferencedSOPSequence>ReferencedSOPInstanceUID", "uid", NEVER),
    # Signatures, graphics, documents and reports inside an image
    ("DigitalSignaturesSequence>DigitalSignatureUID", "uid", NEVER),
    ("DigitalSignaturesSequence>DigitalSignatureDateTime", "moment", NEVER),
    ("DigitalSignaturesSequence>CertificateOfSigner", "bytes", NEVER),
    ("DigitalSignaturesSequence>Signature", "bytes", NEVER),
    ("EncryptedAttributesSequence>EncryptedContent", "bytes", NEVER),
    ("EncapsulatedDocument", "bytes", NEVER),
    ("GraphicAnnotationSequence>TextObjectSequence>UnformattedTextValue", "text", NEVER),
    ("ContentSequence>TextValue", "text", NEVER),
    ("ContentSequence>ContentSequence>PersonName", "person", NEVER),
    ("ContentCreatorName", "person", NEVER),
    ("VerifyingObserverSequence>VerifyingObserverName", "person", NEVER),
    ("VerifyingObserverSequence>VerifyingOrganization", "surname", NEVER),
    ("DataSetTrailingPadding", "bytes", NEVER),
)

# What the sequences above need besides, so that they are whole.
COMPANIONS: tuple[tuple[str, object], ...] = (
    ("OtherPatientIDsSequence>TypeOfPatientID", "TEXT"),
    ("PatientInsurancePlanCodeSequence>CodingSchemeDesignator", "99LOCAL"),
    ("ReferringPhysicianIdentificationSequence>PersonIdentificationCodeSequence>CodeValue", "1"),
    ("ReferringPhysicianIdentificationSequence>PersonIdentificationCodeSequence>CodingSchemeDesignator", "99LOCAL"),
    ("OperatorIdentificationSequence>PersonIdentificationCodeSequence>CodeValue", "2"),
    ("OperatorIdentificationSequence>PersonIdentificationCodeSequence>CodingSchemeDesignator", "99LOCAL"),
    ("OperatorIdentificationSequence>InstitutionName", "Somewhere"),
    ("PerformedProtocolCodeSequence>CodeValue", "3"),
    ("PerformedProtocolCodeSequence>CodingSchemeDesignator", "L"),
    ("ProcedureCodeSequence>CodingSchemeDesignator", "99LOCAL"),
    ("ReferencedPerformedProcedureStepSequence>ReferencedSOPClassUID", "1.2.840.10008.3.1.2.3.3"),
    ("ReferencedStudySequence>ReferencedSOPClassUID", "1.2.840.10008.3.1.2.3.1"),
    ("ContributingEquipmentSequence>PurposeOfReferenceCodeSequence>CodeValue", "109101"),
    ("ContributingEquipmentSequence>PurposeOfReferenceCodeSequence>CodingSchemeDesignator", "DCM"),
    ("ContributingEquipmentSequence>PurposeOfReferenceCodeSequence>CodeMeaning", "Acquisition Equipment"),
    ("ContributingEquipmentSequence>Manufacturer", "Maker"),
    ("OriginalAttributesSequence>ReasonForTheAttributeModification", "CORRECT"),
    ("OriginalAttributesSequence>SourceOfPreviousValues", ""),
    ("AcquisitionContextSequence>ValueType", "TEXT"),
    ("AcquisitionContextSequence>ConceptNameCodeSequence>CodeValue", "121106"),
    ("AcquisitionContextSequence>ConceptNameCodeSequence>CodingSchemeDesignator", "DCM"),
    ("AcquisitionContextSequence>ConceptNameCodeSequence>CodeMeaning", "Comment"),
    ("ContentSequence>RelationshipType", "CONTAINS"),
    ("ContentSequence>ValueType", "TEXT"),
    ("ContentSequence>ConceptNameCodeSequence>CodeValue", "121106"),
    ("ContentSequence>ConceptNameCodeSequence>CodingSchemeDesignator", "DCM"),
    ("ContentSequence>ConceptNameCodeSequence>CodeMeaning", "Comment"),
    ("ContentSequence>ContentSequence>RelationshipType", "HAS OBS CONTEXT"),
    ("ContentSequence>ContentSequence>ValueType", "PNAME"),
    ("ReferencedPatientPhotoSequence>ReferencedSOPSequence>ReferencedSOPClassUID", "1.2.840.10008.5.1.4.1.1.77.1.4"),
    ("ReferencedPatientPhotoSequence>TypeOfInstances", "DICOM"),
    ("ReferencedPatientPhotoSequence>ReferencedSOPSequence>HL7InstanceIdentifier", "1.2.3^4"),
    ("ReferencedPatientPhotoSequence>StudyInstanceUID", "1.2.3.4.1"),
    ("ReferencedPatientPhotoSequence>SeriesInstanceUID", "1.2.3.4.2"),
    ("ReferencedPatientPhotoSequence>DICOMRetrievalSequence>RetrieveAETitle", "ARCHIVE"),
    ("DigitalSignaturesSequence>MACIDNumber", 1),
    ("DigitalSignaturesSequence>CertificateType", "X509_1993_SIG"),
    ("EncryptedAttributesSequence>EncryptedContentTransferSyntaxUID", "1.2.840.10008.1.2.1"),
    ("MIMETypeOfEncapsulatedDocument", "application/pdf"),
    ("ResponsiblePersonRole", "OWNER"),
    ("StudyPriorityID", "LOW"),
)


def put(dataset: Dataset, place: str, value: object) -> None:
    """Set the attribute at a place, with the sequences that lead there."""
    *way, last = place.split(">")
    for keyword in way:
        if keyword not in dataset or not dataset[keyword].value:
            setattr(dataset, keyword, Sequence([Dataset()]))
        dataset = dataset[keyword].value[0]
    tag = tag_for_keyword(last)
    assert tag is not None, last
    dataset[tag] = DataElement(tag, dictionary_VR(tag).split(" ")[0], value)


def at(dataset: Dataset, place: str) -> DataElement | None:
    """The element at a place, None if there is none."""
    *way, last = place.split(">")
    for keyword in way:
        if keyword not in dataset or not dataset[keyword].value:
            return None
        dataset = dataset[keyword].value[0]
    return dataset[last] if last in dataset else None  # noqa: SIM401 - get() by keyword gives the value


def _text(planter: Planter, place: str) -> str:
    return f"{planter.surname(place)} seen {planter.day(place, category='date in text')}, Dr {planter.surname(place)}"


def _value(planter: Planter, place: str, kind: str, kept_by: frozenset[str]) -> object:
    if kind == "text":
        return _text(planter, place)
    if kind == "descriptor":
        return f"CHEST PA {planter.surname(place)}"
    if kind == "short":
        return planter.surname(place, kept_by=kept_by)
    if kind == "long":
        return "none known. " * 700 + f"Ask Mrs {planter.surname(place)}, {planter.phone(place)}, {planter.mail(place)}"
    if kind == "bytes":
        content = f"%PDF-1.7 ({planter.surname(place)})".encode()
        content += f"/Author {planter.surname(place)}".encode("utf-16-le")
        return content + b"\0" * (len(content) % 2)
    if kind in ("person", "phone", "mail", "url"):
        return getattr(planter, kind)(place)
    return getattr(planter, kind)(place, kept_by=kept_by)


def plant_attributes(dataset: Dataset, planter: Planter, leave: frozenset[str]) -> None:
    """Plant at every place but those in `leave`."""
    for place, kind, kept_by in PLACES:
        if place not in leave:
            put(dataset, place, _value(planter, place, kind, kept_by))
    for place, value in COMPANIONS:
        if place not in leave and place.split(">", maxsplit=1)[0] not in leave:
            put(dataset, place, value)
