"""Words of imaging that the standard's dictionaries lack, by what they are; input of ``make_imaging_vocabulary.py``.

Written for this project from common use in descriptions of studies, series and protocols. A word here that is also a
person's or a place's name must stand in one of the two tables at the end, which say how it is treated; the script stops
at one that does not.
"""

from __future__ import annotations

from collections.abc import Mapping


def word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


TERMS: Mapping[str, str] = {
    "modalities": """
        angio angiogram angiography arthro arthrogram bmd cbct colonography cr cta ctv ct cystogram dbt dexa doppler
        dsa duplex dx dxa echo echocardiogram ecg eeg elastography enterography ercp fdg fluoro fluoroscopy fundus
        hrct hsg ivp ivu ivus kub mammo mammogram mammography mammographic mg mr mra mrcp mre mri mrv myelogram nm
        nuclear oct octa op ophthalmic opg orthopantomogram pet portable radiograph radiographic radiography rf scan
        scans scanner scanogram scintigraphy sonogram sonography spect spectroscopy stereo tee tomo tomography
        tomosynthesis tte ultrasound urogram urography us usg vcug venogram venography videofluoroscopy xa xr xray
        xrays
    """,
    "studies and series": """
        additional baseline bedside brightness captured capture comparison compared complete completed copy cropped
        diagnostic dosage dose exam examination examinations examinate exams filtered findings followup frame frames
        guidance guided image images imaging impression indication inverted limited localizer localiser localizers loc
        magnified multi multiple overview planning procedure processed processing protocol qa qc raw recon
        reconstructed reconstruction reconstructions reference reformat reformats reformatted repeat report routine
        scout screening secondary sequence sequences series serie simulation single slab slice slices spot standard
        staging studies study summary surview survey technique test topogram treatment uncropped unprocessed view
        views volume workstation
    """,
    "views and positions": """
        ap pa lat lateral laterals ll rl lm ml mlo cc xccl rcc lcc rmlo lmlo rml lml obl oblique obliques rao lao rpo
        lpo ax axial tra trans transverse transversal transaxial sag sagittal cor coronal parasagittal frontal
        posteroanterior anteroposterior decub decubitus supine prone erect upright semierect standing sitting seated
        recumbent weightbearing weight bearing nonweightbearing lordotic apical swimmers skyline sunrise mortise
        tunnel scaphoid trauma inspiration inspiratory expiration expiratory flexion extension flex abduction
        adduction internal external rotation rotated neutral crosstable horizontal vertical dorsal dorsoplantar
        plantar palmar volar tangential projection projections compression spotmag magnification panoramic bitewing
        periapical cephalometric grashey stenvers subxiphoid parasternal plax psax suprasternal rlat llat od os ou
        cran caud bilat biplane rt lt bil bilateral unilateral
    """,
    "directions": """
        left right superior inferior anterior posterior ant inf sup med prox dist upper lower mid middle medial
        proximal distal above below between inner outer central peripheral anterolateral posterolateral anteromedial
        inward outward ipsilateral contralateral cranial caudal rostral ventral deep superficial both side sided
    """,
    "sequences and techniques": """
        adc asl axials bh blade bold bravo breathhold breathing bssfp cest ciss coronals cube dce dixon diffusion dir
        dsc dti dwi dynamic dyn epi eadc fast fatsat fat sat fgre fiesta flair flash fmri fov free fs fse fspgr ge gd
        gado gadolinium gradient gre haste hires highres hr ideal inphase outphase opposed phase invivo inversion ir
        isotropic iso lava lowres map maps mip minip mpr mprage mrv multiphase navigator pd pdfs pdw perf perfusion
        phaseref pilot propeller proton qsm radial reference resolution resp respiratory rest resting rfmri rtt
        sagittals saturated saturation se sense ser smart space spair spectral spgr spin spir ssfse stir stress
        suppressed suppression swan swi tesla thrive tirm tof trace triggered triggering trufi truefisp tse turbo ufse
        venc vibe vista vrt vr water weighted wfs adaptive algorithm asir angulated bonekernel calcium cardiac ctdi
        detail dlp dual edge energy gated gating helical hd iterative kernel ksp kv kvp mas medium monoenergetic
        monochromatic nonionic overread pitch prospective retrospective sharp smooth soft spiral thick thickness thin
        tilt ungated virtual window bmode mmode colour color power harmonic pulsed cine clip loop sweep transducer
        linear convex curved phased probe attenuation corrected uncorrected ac nac emission transmission static
        wholebody dynamics uptake washout macula optic disc disk nerve mydriatic nonmydriatic retinal autofluorescence
        fluorescein angiographic infrared redfree stereo widefield
    """,
    "contrast": """
        contrast noncontrast nonenhanced unenhanced enhanced enhancement enhancing postcontrast precontrast agent
        bolus injection injected infusion iodinated iodine iohexol iodixanol iopamidol iopromide ioversol omnipaque
        visipaque ultravist isovue optiray gadobutrol gadoterate gadavist dotarem magnevist multihance prohance eovist
        barium gastrografin saline glucagon oral rectal intravenous intra iv po arterial venous portal portovenous
        delayed delay delays early late nephrographic excretory equilibrium hepatobiliary timing tracker monitoring
        with without non post pre wo ce nce unenh postgad postgado pregad biphasic triphasic
    """,
    "anatomy": """
        abd abdo abdomen abdominal abdominopelvic acetabulum achilles adrenal adrenals ankle ankles aorta aortic apex
        appendix arm arms artery arteries atrium axilla bladder bowel brachial brachium brain breast breasts bronchus
        calcaneus calf calves cardiovascular carotid carotids carpal cerebral cerebellum cerebrum cervical chest
        clavicle coccyx colon coronary cranium cspine cervicothoracic diaphragm dorsum duodenum ear ears elbow elbows
        esophagus oesophagus extremity extremities eye eyes facial femoral femur fibula finger fingers foot feet
        forearm forefoot gallbladder gastrointestinal gi gu hand hands head heart heel hepatic hilum hindfoot hip hips
        humerus iac iacs ileum iliac intestine jaw joint joints kidney kidneys knee knees larynx leg legs le lle lue
        ue rle rue liver lspine lsspine lumbar lumbosacral lung lungs mandible maxilla mediastinum midfoot midline
        musculoskeletal msk nasal nasopharynx neck orbit orbits ovary ovaries pancreas parotid patella patellofemoral
        pelvic pelvis penis peritoneum pharynx pituitary pleura pleural prostate pulmonary radius rectum renal retina
        rib ribs sacrum sacroiliac scapula scrotum sella shoulder shoulders si sij sinus sinuses skeletal skeleton
        skull spine spines spinal spleen sternum stomach teeth temporal testes testicle testicular thigh thighs
        thoracic thoracolumbar thorax throat thumb thumbs thyroid tibia tibial tissue tmj tmjs toe toes tongue tooth
        trachea tspine ulna umbilical ureter ureters urethra urinary uterus vagina vascular vein veins ventricle
        vertebra vertebrae vertebral vessel vessels wrist wrists tib fib hum extrem shin chin cheek face bone bones
        hair nail nails palm back wall branch circle arch root pulp body trunk groin cap cord canal fossa base bed
        bony
    """,
    "findings": """
        abnormal abnormality abscess acute adenopathy aneurysm arthritis arthroplasty aspiration atelectasis bleed
        bleeding bruise calcification calcifications calcified calculi calculus cancer cardiomegaly cavitary chronic
        cirrhosis collapse congestion consolidation copd cough cyst cystic cysts deformity degenerative density
        dislocation dissection diverticulitis dvt dyspnea edema oedema effusion effusions embolism embolus emphysema
        enlarged enlargement erosion fever fibrosis focal fracture fractures fx fluid foreign gas granuloma hematoma
        haematoma hemorrhage haemorrhage hernia hydrocephalus hydronephrosis hypertension infarct infarction infection
        inflammation infiltrate infiltrates injury intact ischemia ischaemia laceration lesion lesions lymphadenopathy
        lymphoma malignancy malignant benign mass masses melanoma meningioma metastases metastasis metastatic mets
        mild moderate necrosis negative nodule nodules nodular normal obstruction occlusion opacities opacity
        osteoarthritis osteomyelitis osteoporosis pain perforation pneumonia pneumothorax polyp polyps positive postop
        postoperative preop preoperative ptx recurrence rupture scoliosis seizure sepsis severe shortness spondylosis
        sprain stable stenosis stone stones stroke subluxation suspected suspicious swelling syncope tear tears
        thrombosis thrombus tuberculosis tumor tumors tumour ulcer unchanged unremarkable vertigo weakness worsening
        resolved resolving improved improving increased decreased interval change changes evaluate evaluation rule
    """,
    "devices": """
        biopsy catheter cath clip clips coil coils cvc detector device drain drainage ett fixation grid hardware icd
        implant implants line lines needle ngt pacemaker phantom picc pin pins plate port prosthesis screw screws
        shunt stent stents tube tubes valve wire wires bucky tray wallstand table tabletop cassette collimator cr ddr
        flat panel headcoil kneecoil bodycoil surface array
    """,
    "parts and properties, rare as names": """
        atlas band balloon bile border cava chamber channel cornea corpus crest current distance dura endo factor
        flank floor flow fontan fraction gamma gate graft halo lobe lobes layer loss lut marrow mater matter mean
        media nipple node nodes notch organ out placement plane planes point points pool pouch pump ramp ramus row
        scale score sensor shape shield source step steps strength tip tonsil tonsils top trial vena voi wave wedge pe
        rx ob arteriogram transvaginal fibroma gad marker signal trimester second radiographie oberes mrt cad
        nonossifying
    """,
    "units": """
        mm cm kv kvp kev mev mas mgy gy cgy hz khz mhz sec secs msec bpm mci mbq kbq bq deg degrees degree ml percent
    """,
    "function words": """
        a all an and are as at be but each for in including into is no not of off on only or other over per plus than
        that the then there these this to under up via was were which while within after again before during first
        second third fourth one two three four five six seven eight nine ten double follow previous since small large
        long short high low big tall wide narrow full half partial whole total main heavy axis axes level levels
        field key cross true false open closed yes trauma emergency stat urgent inpatient outpatient paediatric
        pediatric adult infant neonatal fetal foetal obstetric obstetrical gyn gynecological auto automatic default
        custom fine coarse bright dark l r c t w x o p v
    """,
    "other languages": """
        kopf schaedel schadel hals becken knie schulter hufte huefte wirbelsaule wirbelsaeule hws bws lws fuss
        sprunggelenk ellenbogen handgelenk unterschenkel oberschenkel unterarm oberarm lunge leber niere nieren herz
        nativ kontrastmittel ohne mit nach links rechts beidseits bds seitlich aufnahme ebenen liegend stehend schnitt
        cerveau cou poumon genou epaule hanche bassin rachis cheville poignet coude pied gauche droite droit profil
        sans avec produit contraste cerebrale sein foie rein coeur membre torax cabeza cuello rodilla hombro cadera
        columna mano codo muneca tobillo izquierdo izquierda derecho derecha sin con cerebro mama higado rinon craneo
        pelvis abdomen simple collo ginocchio spalla anca bacino colonna piede polso gomito caviglia sinistro sinistra
        destro destra senza mezzo cranio encefalo addome torace laterale hoofd nek buik bekken schouder heup pols
        enkel elleboog voet zonder met joelho ombro quadril coluna cotovelo punho tornozelo esquerdo esquerda direito
        direita mamas
    """,
}

TERMS_THAT_STAY_THOUGH_NAMES = word_set(
    """
    an arms brain coil echo in lines lue mr oral pa shoulders six to tse via
    """
)
"""Also names, but so much more often terms that they stay like other terms."""

ANATOMY_THAT_IS_A_NAME = word_set(
    """
    back bone cheek chin colon finger hair hand head nail palm shin
    """
)
"""Stay beside other terms, or alone."""


TERMS_BESIDE: Mapping[str, str] = {
    "branch": "bundle left retinal right",
    "bravo": "3d",
    "bright": "blood",
    "cross": "section sectional table",
    "dark": "blood field fluid",
    "dixon": "fat tse vibe water",
    "drain": "catheter chest placement tube",
    "early": "arterial phase venous",
    "edge": "enhanced enhancement",
    "fast": "echo exam scan spin",
    "field": "full large of view visual wide",
    "fine": "cut needle slice",
    "floor": "orbital pelvic",
    "frame": "multi rate time",
    "free": "air breathing fluid",
    "high": "definition dose pitch res resolution",
    "key": "image images",
    "lao": "# caudal cranial oblique view",
    "large": "bowel field fov intestine part",
    "le": "doppler venous",
    "long": "ax axis leg view",
    "low": "dose res resolution",
    "lower": "abdomen extremities extremity leg legs limb lobe pole",
    "main": "artery bronchus",
    "marker": "skin",
    "marrow": "bone",
    "pool": "blood",
    "post": "contrast gad gadolinium gado injection op operative processing reduction surgical treatment void",
    "power": "doppler",
    "rao": "# caudal cranial oblique view",
    "root": "aortic nerve",
    "rue": "doppler venous",
    "rule": "out",
    "sharp": "bone kernel lung",
    "short": "ax axis tau view",
    "small": "bowel field fov intestine part parts",
    "smart": "prep",
    "standard": "dose kernel plane protocol recon view views",
    "stone": "kidney protocol renal search",
    "surface": "coil rendered rendering",
    "swan": "3d ax axial",
    "true": "ap lateral",
    "vena": "cava",
    "wall": "abdominal chest",
}
"""Terms that are also names, each with the words beside which it is a term; # is a number. Elsewhere it goes."""
