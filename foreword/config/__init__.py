"""Options: every option of foreword, written once, with its type, default and help.

In: nothing. Out: frozen dataclasses that the library takes and that the command line is derived
from. A cross-check that fails names the option. Knows no torch, no files and no terminal.
"""

from typing import TYPE_CHECKING

from foreword.lazy import lazy_names

if TYPE_CHECKING:
    from foreword.config.addresses import checked_key as checked_key
    from foreword.config.addresses import checked_origin as checked_origin
    from foreword.config.addresses import is_http as is_http
    from foreword.config.checks import LARGEST as LARGEST
    from foreword.config.checks import check_types as check_types
    from foreword.config.data import TEMPLATE_FIELD as TEMPLATE_FIELD
    from foreword.config.data import DataConfig as DataConfig
    from foreword.config.data import Learn as Learn
    from foreword.config.declaring import AUTO as AUTO
    from foreword.config.declaring import Rate as Rate
    from foreword.config.declaring import fact as fact
    from foreword.config.declaring import file_option as file_option
    from foreword.config.declaring import option as option
    from foreword.config.declaring import rate as rate
    from foreword.config.declaring import rate_option as rate_option
    from foreword.config.distillation import DistillConfig as DistillConfig
    from foreword.config.distillation import DistillStart as DistillStart
    from foreword.config.encoding import BEFORE as BEFORE
    from foreword.config.encoding import EncodingConfig as EncodingConfig
    from foreword.config.encoding import Opening as Opening
    from foreword.config.evaluation import EvalConfig as EvalConfig
    from foreword.config.evaluation import ResamplingConfig as ResamplingConfig
    from foreword.config.objective import ObjectiveConfig as ObjectiveConfig
    from foreword.config.objective import ObjectiveName as ObjectiveName
    from foreword.config.objective import RewardConfig as RewardConfig
    from foreword.config.objective import check_for_pairs as check_for_pairs
    from foreword.config.sampling import COLDEST as COLDEST
    from foreword.config.sampling import SamplingConfig as SamplingConfig
    from foreword.config.serving import MAX_SERVED_NAME as MAX_SERVED_NAME
    from foreword.config.serving import ServeConfig as ServeConfig
    from foreword.config.serving import check_keys as check_keys
    from foreword.config.serving import served_name as served_name
    from foreword.config.training import DEMONSTRATED_LENGTH as DEMONSTRATED_LENGTH
    from foreword.config.training import FORMS as FORMS
    from foreword.config.training import NUM_DEMONSTRATED as NUM_DEMONSTRATED
    from foreword.config.training import NUM_VIRTUAL_TOKENS as NUM_VIRTUAL_TOKENS
    from foreword.config.training import OF_VALUES as OF_VALUES
    from foreword.config.training import RATES as RATES
    from foreword.config.training import RELATIVE as RELATIVE
    from foreword.config.training import Form as Form
    from foreword.config.training import Initialization as Initialization
    from foreword.config.training import MethodName as MethodName
    from foreword.config.training import TrainConfig as TrainConfig

__getattr__, __dir__ = lazy_names(
    __name__,
    declaring="AUTO Rate option fact file_option rate_option rate",
    checks="LARGEST check_types",
    addresses="checked_key checked_origin is_http",
    data="Learn TEMPLATE_FIELD DataConfig",
    encoding="Opening BEFORE EncodingConfig",
    training="Form Initialization MethodName FORMS RATES OF_VALUES RELATIVE NUM_VIRTUAL_TOKENS "
    "NUM_DEMONSTRATED DEMONSTRATED_LENGTH TrainConfig",
    objective="ObjectiveName ObjectiveConfig RewardConfig check_for_pairs",
    distillation="DistillStart DistillConfig",
    sampling="COLDEST SamplingConfig",
    evaluation="EvalConfig ResamplingConfig",
    serving="MAX_SERVED_NAME ServeConfig check_keys served_name",
)
