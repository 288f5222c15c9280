"""An optimizer's state, carried into a changed optimizer: a run that is resumed under changed code.

Read `leaves` first: what an array of a state is. `counts` refuses moments that would come under another count,
`numbers` asks the optimizer's code for rates and multipliers, and `carrying` puts the new state together.
"""

from .carrying import CarriedState as CarriedState
from .carrying import carry_state as carry_state

__all__ = ["CarriedState", "carry_state"]
